"""python -m pytest tests/interop/test_halves.py

PEFT's adapters of encoder-decoder models, beside PEFT: the same logits from what its forward pass reads of them, and
back; what has no effect there is told, and what it cannot represent is refused.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Decoding
from foreword.core.prompts import PrefixPrompt, SoftPrompt, stack
from foreword.errors import ArtefactError
from foreword.interop.peft import export, read
from foreword.interop.peft_files import CONFIG, TENSORS, Adapter
from foreword.interop.peft_seq2seq import unread
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import collate, prepare
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from foreword.models.tiny import tiny
from tests.models.seq2seq_zoo import CONFIGS, of_config
from tests.models.zoo import VOCAB, gap

EXACT = 1e-5
LENGTH = 3
WORDS = {"good": "yes", "bad": "no"}
TEXTS = ["a", "this is fine", "no, not again"]
PEFT = {
    "prompt": (peft.PromptTuningConfig, {}),
    "p-mlp": (peft.PromptEncoderConfig, {"encoder_hidden_size": 20}),
    "prefix": (peft.PrefixTuningConfig, {}),
    "prefix-projected": (peft.PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 9}),
}


def config_of(family: str, layers: tuple[int, int]) -> Any:
    """Depths of encoder and decoder, and the sizes that PEFT can give a prefix to."""
    config = CONFIGS[family]()
    if family == "t5":
        config.num_layers, config.num_decoder_layers = layers
        config.d_kv = 8
    else:
        config.encoder_layers, config.decoder_layers = layers
        config.encoder_attention_heads = 4
    return config


def base(family: str, layers: tuple[int, int]) -> Any:
    model = of_config(config_of(family, layers))
    model.name_or_path = f"tiny/{family}"
    return model


def frozen(family: str, layers: tuple[int, int]) -> FrozenLM:
    return wrap(base(family, layers), byte_tokenizer("seq2seq"))


def made(family: str, layers: tuple[int, int], method: str) -> Any:
    kind, options = PEFT[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        config = kind(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, **options)
        return peft.get_peft_model(base(family, layers), config).eval()


def reloaded(family: str, layers: tuple[int, int], folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base(family, layers), folder).eval()


def saved(model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def theirs(model: Any, rows: list[Encoded]) -> list[torch.Tensor]:
    """PEFT's own logits of each row's decoder, one at a time and unpadded."""
    found = []
    for row in rows:
        assert row.source is not None
        ids = torch.tensor([row.source.ids_S[row.source.slot_S < 0].tolist()])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoder = torch.tensor([row.ids_S.tolist()])
            found.append(model(input_ids=ids, decoder_input_ids=decoder, attention_mask=torch.ones_like(ids)).logits[0])
    return found


def rows_of(artefact: Artefact, lm: FrozenLM) -> list[Encoded]:
    """Rows with some of the answer after the decoder's start, so that several positions are read."""
    start = artefact.value.start if isinstance(artefact.value, PrefixPrompt) else 0
    template = artefact.format.template.source
    assert isinstance(template, str)
    form = artefact.format.without_labels()
    told = type(form.template).parse(template.removesuffix("{answer}") + "{decoder}so it is {answer}")
    encoder = Encoder.build(lm, replace(form, template=told), start)
    return [encoder.encode({"text": text}) for text in TEXTS]


def ours(lm: FrozenLM, artefact: Artefact, rows: list[Encoded]) -> list[torch.Tensor]:
    """Foreword's logits at every position of the same rows, in one padded batch."""
    value = artefact.value
    assert isinstance(value, SoftPrompt | PrefixPrompt)
    batch = collate(rows)
    batch = replace(batch, read_BR=torch.arange(batch.ids_BS.shape[1]).expand(len(rows), -1))
    task_B = torch.zeros(len(rows), dtype=torch.long)
    hidden_BRD = lm.hidden_at(*prepare(lm, batch, stack([value], lm.embed), task_B))
    flat = lm.piece_logits(hidden_BRD.flatten(0, 1), torch.arange(VOCAB)).unflatten(0, hidden_BRD.shape[:2])
    return [row[: len(e.ids_S)] for row, e in zip(flat, rows, strict=True)]


def imported(source: Any, lm: FrozenLM) -> Artefact:
    return read(source, lm, template="{text} :{answer}", label_words=WORDS)


@pytest.mark.parametrize("method", PEFT)
@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("layers", [(3, 3), (4, 4), (6, 6), (4, 2)])
def test_what_peft_saved_gives_its_logits_and_goes_back(family, layers, method, tmp_path):
    model, lm = made(family, layers, method), frozen(family, layers)
    adapter = Adapter.load(saved(model, tmp_path / "theirs"))
    artefact = imported(tmp_path / "theirs", lm)
    rows = rows_of(artefact, lm)
    wanted = theirs(model, rows)
    assert gap(ours(lm, artefact, rows), wanted) <= EXACT

    told = unread(adapter, lm)
    dead = "prefix" not in method or layers[0] % 2 == 0 or layers[1] < layers[0]
    assert (told is not None) == dead
    live = live_part(adapter, layers)
    noise = torch.randn(adapter.prompt_PX.shape, generator=torch.Generator().manual_seed(4))
    moved = Adapter(adapter.config, adapter.prompt_PX + live * noise)
    assert gap(ours(lm, imported(moved, lm), rows), wanted) > 100 * EXACT
    hidden = Adapter(adapter.config, adapter.prompt_PX + (1 - live) * noise)
    assert gap(ours(lm, imported(hidden, lm), rows), wanted) <= EXACT  # what PEFT never reads is not read here

    export(artefact, tmp_path / "ours", lm, base_model=f"tiny/{family}")
    again = Adapter.load(tmp_path / "ours")
    assert torch.equal(again.prompt_PX, adapter.prompt_PX * live)
    if not dead:
        files = [(tmp_path / who / TENSORS).read_bytes() for who in ("theirs", "ours")]
        assert files[0] == files[1]
    if method != "prefix-projected":
        assert (tmp_path / "ours" / CONFIG).read_bytes() == (tmp_path / "theirs" / CONFIG).read_bytes()
    assert gap(theirs(reloaded(family, layers, tmp_path / "ours"), rows), wanted) <= EXACT


def live_part(adapter: Adapter, layers: tuple[int, int]) -> torch.Tensor:
    """1 where PEFT's forward pass reads the adapter, told by its gradients (the reference, 1.5, #4 and #5)."""
    live = torch.zeros_like(adapter.prompt_PX)
    if adapter.kind != "PREFIX_TUNING":
        live[:LENGTH] = 1
        return live
    blocks = live.view(LENGTH, 2 * layers[0], -1)
    for layer in range(layers[1]):
        for i in (0, 1):
            blocks[:, (4 * layer + i) % (2 * layers[0])] = 1
    return live


@pytest.mark.parametrize("layers", [(3, 3), (4, 4), (6, 6), (4, 2)])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_peft_reads_what_is_said_to_be_read_and_no_more(family, layers):
    """By its own gradients: once it reads all, this fails, and so should what is told of its adapters."""
    model, lm = made(family, layers, "prefix"), frozen(family, layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model(input_ids=torch.tensor([[9, 10, 11]]), decoder_input_ids=torch.tensor([[0, 8, 9]])).logits
    out.logsumexp(-1).sum().backward()
    weight = model.prompt_encoder["default"].embedding.weight
    config = {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": LENGTH}
    live = live_part(Adapter(config, weight.detach()), layers)
    assert torch.equal((weight.grad != 0).float(), live)
    assert lm.sites["self"].layers == layers[1]


def test_minimal_configs_and_texts(tmp_path):
    """Three keys, and an adapter of a model that writes."""
    lm = frozen("t5", (3, 3))
    folder = saved(made("t5", (3, 3), "prefix"), tmp_path / "x")
    config = {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": LENGTH}
    whole = imported(folder, lm)
    (folder / CONFIG).write_text(json.dumps(config))
    artefact = read(folder, lm, template="{text}", decoding=Decoding(8))
    assert artefact.format.answers == "text"
    assert isinstance(artefact.value, PrefixPrompt) and isinstance(whole.value, PrefixPrompt)
    assert torch.equal(artefact.value.sites["self"][0], whole.value.sites["self"][0])
    again = Artefact.load(artefact.save(tmp_path / "y"))
    assert isinstance(again.value, PrefixPrompt)
    assert again.value.sites.keys() == {"self"}
    export(again, tmp_path / "z", lm)
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "z" / "README.md").read_text()


def test_what_peft_cannot_represent_is_refused_in_a_sentence(tmp_path):
    lm = frozen("t5", (4, 4))
    plain = imported(saved(made("t5", (4, 4), "prefix"), tmp_path / "x"), lm)
    every = lm.prefix_from_words(torch.tensor([9, 10]))
    with pytest.raises(ArtefactError, match=r"stands at encoder, cross too.*sites=self"):
        export(replace(plain, value=every), tmp_path / "y", lm)
    own = PrefixPrompt({"self": every.sites["self"]}, 2)
    with pytest.raises(ArtefactError, match="gives layers 0 and 2 of this decoder one prefix"):
        export(replace(plain, value=own), tmp_path / "y", lm)
    both = replace(plain.format, template=type(plain.format.template).parse("{soft:2}{text}{decoder}{soft:1}"))
    soft = SoftPrompt(torch.zeros(3, lm.dims.width))
    with pytest.raises(ArtefactError, match="before everything that an encoder reads"):
        export(replace(plain, value=soft, format=replace(both, soft_first=True)), tmp_path / "y", lm)
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("family", "change", "match"),
    [
        ("t5", {"d_kv": 12}, "4 heads of 12"),
        ("t5", {"num_decoder_layers": 5}, "4 encoder and 5 decoder layers"),
        ("bart", {"encoder_attention_heads": 2}, "encoder's 2 heads"),
    ],
)
def test_models_on_which_peft_s_own_prefix_fails_are_refused(family, change, match, tmp_path):
    config = config_of(family, (4, 4))
    for name, value in change.items():
        setattr(config, name, value)
    lm = wrap(of_config(config), byte_tokenizer("seq2seq"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH)
        model = peft.get_peft_model(of_config(config), own).eval()
        with pytest.raises((RuntimeError, IndexError)):
            model(input_ids=torch.tensor([[9, 10]]), decoder_input_ids=torch.tensor([[0, 8]]))
    with pytest.raises(ArtefactError, match=match):
        imported(saved(model, tmp_path / "x"), lm)


def test_adapters_and_models_of_other_kinds_are_refused(tmp_path):
    folder = saved(made("t5", (3, 3), "prompt"), tmp_path / "x")
    with pytest.raises(ArtefactError, match=r"made for a seq2seq model .* loaded as causal"):
        imported(folder, tiny("causal"))
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "num_virtual_tokens": 6}))
    with pytest.raises(ArtefactError, match="two rows for each of num_virtual_tokens=6"):
        Adapter.load(folder)
    (folder / CONFIG).write_text(
        json.dumps({**config, "num_virtual_tokens": 6, "task_type": "CAUSAL_LM", "num_transformer_submodules": 1})
    )
    with pytest.raises(ArtefactError, match=r"made for a causal model .* loaded as seq2seq"):
        imported(folder, frozen("t5", (3, 3)))
