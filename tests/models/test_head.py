"""Heads and embeddings that are no plain matrix give the library's own logits, or are refused in a sentence.

python -m pytest tests/models/test_head.py

Each adapter's numbers are moved off zero, so that the plain model, and its head's `weight`, give other logits: that is
the control of each comparison.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from foreword.core.prompts import SoftPrompt, stack
from foreword.errors import ConfigError, ModelError
from foreword.models.encoding.encoder import Encoder
from foreword.models.hf.head import is_plain
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from foreword.models.score import score
from foreword.tasks.formats import build_format
from tests.models.zoo import VOCAB, batch, build, gap, logits, read

peft = pytest.importorskip("peft")
pytestmark = [  # PEFT's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`"),
]
FP32, MOVED = 1e-5, 1e-2
ROWS = [[4, 5, 6, 7, 8], [6, 5, 9]]  # tokens 5 and 6 are those that get vectors of their own


def lora(*targets: str, **more: Any) -> Any:
    return peft.LoraConfig(r=2, lora_alpha=4, target_modules=[*targets], **more)


ADAPTERS = {
    "llama lm_head": ("llama", lora("lm_head")),
    "llama lm_head DoRA": ("llama", lora("lm_head", use_dora=True)),
    "llama embedding": ("llama", lora("embed_tokens")),
    "llama saved head": ("llama", lora("q_proj", modules_to_save=["lm_head"])),
    "llama saved embedding": ("llama", lora("q_proj", modules_to_save=["embed_tokens"])),
    "llama trained tokens": ("llama", lora("q_proj", trainable_token_indices=[5, 6])),
    "gemma2 tied head, soft cap": ("gemma2", lora("lm_head")),
    "gemma3 trained tokens, tied": ("gemma3", lora("q_proj", trainable_token_indices=[5, 6])),
    "gpt2 trained tokens, tied": ("gpt2", lora("c_attn", fan_in_fan_out=True, trainable_token_indices={"wte": [5, 6]})),
    "bert decoder with bias": ("bert", lora("decoder")),
    "bert saved head and transform": ("bert", lora("query", modules_to_save=["cls"])),
    "roberta decoder": ("roberta", lora("decoder")),
    "distilbert projector": ("distilbert", lora("vocab_projector")),
    "modernbert decoder": ("modernbert", lora("decoder")),
}


def adapted(family: str, config: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    model = peft.get_peft_model(build(family), config).get_base_model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("lora", "trainable_tokens", "modules_to_save", "magnitude")):
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def ways(lm: Any) -> dict[str, list[torch.Tensor]]:
    """Every way in which logits leave a model, over rows padded to one length."""
    inputs, at = batch(lm, ROWS)
    hidden_BRD = lm.hidden_at(inputs)
    flat_XD, shape = hidden_BRD.flatten(0, 1), hidden_BRD.shape[:2]
    whole = lm.vocabulary_logits(flat_XD).unflatten(0, shape)
    normaliser = lm.log_normaliser(flat_XD).unflatten(0, shape)
    return {
        "pieces": read(lm, inputs, at),
        "whole": [row[where] for row, where in zip(whole, at, strict=True)],
        "normaliser": [row[where] for row, where in zip(normaliser, at, strict=True)],
    }


def compare(model: transformers.PreTrainedModel, plain: transformers.PreTrainedModel) -> None:
    theirs = [logits(model, row) for row in ROWS]
    assert gap([logits(plain, row) for row in ROWS], theirs) > MOVED
    sums = [row.logsumexp(-1) for row in theirs]
    for way, ours in ways(wrap(model, byte_tokenizer("causal"))).items():
        assert gap(ours, sums if way == "normaliser" else theirs) < FP32, way


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_at_the_head_or_the_embedding_is_read(case: str) -> None:
    family, config = ADAPTERS[case]
    compare(adapted(family, config), build(family))


def test_read_as_its_weight_an_adapted_head_is_wrong_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch off: what reads `weight` alone gives other logits, which the check of a wrapped model sees."""
    monkeypatch.setattr("foreword.models.hf.head.is_plain", lambda layer: True)
    with pytest.raises(ModelError, match="does not give the logits of its output head"):
        wrap(adapted("llama", lora("lm_head")), byte_tokenizer("causal"))


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 0.5 * weight


def doubled(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def parametrised(head: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(head, "weight", Halved())
    return head


def hooked(head: nn.Module) -> nn.Module:
    head.register_forward_hook(doubled)
    return head


def replaced(head: nn.Module) -> nn.Module:
    inner = head.forward
    head.forward = lambda hidden: 3 * inner(hidden)  # type: ignore[method-assign]
    return head


class Two(nn.Module):
    """A head of two layers, which has no weight at all."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(hidden))


@pytest.mark.parametrize("change", [parametrised, hooked, Two], ids=lambda change: change.__name__)
def test_a_changed_head_is_called(change: Callable[[nn.Module], nn.Module]) -> None:
    model = build("llama")
    assert is_plain(model.lm_head)
    model.lm_head = change(model.lm_head)
    assert not is_plain(model.lm_head)
    compare(model, build("llama"))
    assert not is_plain(replaced(build("llama").lm_head))


def test_a_prompt_trains_through_a_head_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient is that of the library's own logits, in one part and in many."""
    model = adapted("llama", lora("lm_head"))
    lm = wrap(model, byte_tokenizer("causal"))
    form = build_format("causal", ("text",), ("a", "b"), "{soft:2}{text}{answer}", {"a": ["x"], "b": ["yes"]})
    row = Encoder.build(lm, form).encode({"text": "some"})
    start = torch.randn(2, lm.dims.width, generator=torch.Generator().manual_seed(1))

    def ours() -> torch.Tensor:
        leaf = start.clone().requires_grad_()
        zero = torch.zeros(1, dtype=torch.long)
        score(lm, [row], stack([SoftPrompt(leaf)], lm.embed), zero)[0, 1].backward()
        assert leaf.grad is not None
        return leaf.grad

    leaf = start.clone().requires_grad_()
    assert row.plan is not None
    word = row.plan.words[1][0]
    ids = torch.tensor([*row.ids_S.tolist(), *word[:-1]])
    embed = model.get_input_embeddings()(ids).detach()
    at = [int(i) for i in (row.slot_S >= 0).nonzero()[0]]
    embed[at] = 0
    slots = torch.zeros(len(ids), 2)
    slots[at, range(2)] = 1
    out = model(inputs_embeds=(embed + slots @ leaf)[None]).logits[0].log_softmax(-1)
    sum(out[len(row.ids_S) - 1 + n, piece] for n, piece in enumerate(word)).backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 1e-3
    assert gap([ours()], [leaf.grad]) < FP32
    monkeypatch.setattr("foreword.models.hf.model.CHUNK", 2 * VOCAB)
    assert gap([ours()], [leaf.grad]) < FP32


class Scaled(transformers.LlamaForCausalLM):
    """What Cohere, Granite and MiniCPM do: logits are scaled outside of the head."""

    def forward(self, *args: Any, **keywords: Any) -> Any:
        out = super().forward(*args, **keywords)
        out.logits = out.logits * 0.25
        return out


class Shifted(transformers.LlamaForCausalLM):
    """Embeddings are scaled outside of the embedding, as Granite does."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **keywords: Any) -> Any:
        embeds = self.get_input_embeddings()(input_ids) * 12 if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=embeds, **keywords)


@pytest.mark.parametrize("kind", [Scaled, Shifted])
def test_a_model_that_changes_its_logits_or_embeddings_elsewhere_is_refused(kind: type) -> None:
    model = kind(build("llama").config)
    model.load_state_dict(build("llama").state_dict())
    with pytest.raises(ModelError, match=f"a {kind.__name__}'s, changes one of them"):
        wrap(model.eval(), byte_tokenizer("causal"))


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_families_that_scale_logits_are_refused_by_name(family: str) -> None:
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **sizes))
    with pytest.raises(ModelError, match=f"is of the family {family}, which Foreword does not read"):
        wrap(model, byte_tokenizer("causal"))


def test_a_token_without_a_row_is_named_and_rows_without_a_token_are_fine() -> None:
    tokenizer = byte_tokenizer("causal")
    tokenizer.add_tokens(["brandnew"])
    lm = wrap(build("llama"), tokenizer)
    form = build_format("causal", ("text",), ("a", "b"), "{text}{answer}", {"a": ["x"], "b": ["y"]})
    none = torch.zeros(1, dtype=torch.long)
    fine = score(lm, [Encoder.build(lm, form).encode({"text": "old"})], None, none)
    longer = build("llama")
    longer.resize_token_embeddings(VOCAB + 9, mean_resizing=False)
    same = wrap(longer, byte_tokenizer("causal"))
    padded = score(same, [Encoder.build(same, form).encode({"text": "old"})], None, none)
    assert torch.allclose(padded.softmax(-1), fine.softmax(-1), atol=1e-5)
    with pytest.raises(
        ModelError, match=r"The token 'brandnew' of the tokenizer of .* has the number 263, .* 263 tokens"
    ):
        score(lm, [Encoder.build(lm, form).encode({"text": "a brandnew one"})], None, none)
    labels = build_format("causal", ("text",), ("a", "b"), "{text}{answer}", {"a": ["brandnew"], "b": ["y"]})
    with pytest.raises(ModelError, match=r"The token 'brandnew' .* output head has logits for 263 tokens"):
        score(lm, [Encoder.build(lm, labels).encode({"text": "old"})], None, none)


def test_a_padding_token_without_a_row_is_no_obstacle() -> None:
    tokenizer = byte_tokenizer("causal")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == VOCAB
    lm = wrap(build("llama"), tokenizer)
    assert lm.tokenizer.pad_token_id < VOCAB and tokenizer.pad_token_id == VOCAB
    ids = lm.generate(batch(lm, [[5, 6, 7], [8]])[0], max_new_tokens=2, do_sample=False)
    assert int(ids.max()) < VOCAB


@pytest.mark.parametrize(
    ("family", "targets", "why"),
    [
        ("llama", "embed_tokens", "is an embedding"),
        ("gemma2", "lm_head", "shares its matrix"),
        ("llama", "lm_head", None),
    ],
)
def test_lora_trains_no_matrix_that_its_update_cannot_be_kept_of(family: str, targets: str, why: str | None) -> None:
    from foreword.methods.baselines.lora import LoraConfig, _require_foldable, inject

    lm, config = wrap(build(family), byte_tokenizer("causal")), LoraConfig(targets=targets)
    injected = inject(lm, config, 0)
    if why is None:
        _require_foldable(lm, injected, config)
    else:
        with pytest.raises(ConfigError, match=why):
            _require_foldable(lm, injected, config)
    with pytest.raises(ConfigError, match="has adapters of PEFT in it already"):
        inject(injected, LoraConfig(), 0)


@pytest.mark.parametrize("learns", ["PromptTuningConfig", "PrefixTuningConfig", "LoraConfig"])
def test_a_model_of_peft_names_what_holds_its_adapter(learns: str) -> None:
    more = {"target_modules": ["q_proj"]} if learns == "LoraConfig" else {"num_virtual_tokens": 4}
    model = peft.get_peft_model(build("llama"), getattr(peft, learns)(task_type="CAUSAL_LM", **more))
    # The base model of a learnt prompt answers without it.
    said = "give its get_base_model" if learns == "LoraConfig" else "prompt is not in its get_base_model.*`foreword imp"
    with pytest.raises(ModelError, match=said):
        wrap(model, byte_tokenizer("causal"), kind="causal")
