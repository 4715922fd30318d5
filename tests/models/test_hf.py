"""The Hugging Face model behind the contract: left untouched, read through other weights, recomputed, refused in words.

python -m pytest tests/models/test_hf.py
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from foreword.core.inject import inject_prefix
from foreword.core.prompts import stack
from foreword.errors import ConfigError, ModelError
from foreword.models.hf.lm import HFLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.models.tiny import tiny
from tests.models.zoo import CONFIGS, WITHOUT_PREFIX, batch, build, frozen, gap, logits, read, sentences


def digest(model: torch.nn.Module) -> str:
    """Every tensor, mode, flag and attention setting of a model."""
    state = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state.update(
            f"{name} {tensor.requires_grad} {tensor.grad is None}".encode() + tensor.detach().numpy().tobytes()
        )
    for name, module in model.named_modules():
        state.update(f"{name} {module.training} {sorted(vars(module))} {len(module._forward_hooks)}".encode())
    state.update(f"{model.config._attn_implementation} {model.config.to_json_string(use_diff=False)}".encode())
    return state.hexdigest()


@pytest.mark.parametrize("family", CONFIGS)
def test_wrapping_and_use_leave_the_model_as_it_was(family: str) -> None:
    model = build(family).train().requires_grad_(True)
    before, row = digest(model), [5, 6, 7]
    lm = wrap(model, byte_tokenizer("causal"))
    inputs, at = batch(lm, [row])
    first = read(lm, inputs, at)[0]
    assert torch.equal(first, read(lm, inputs, at)[0])  # no dropout, though the model is training
    first.sum().backward() if first.requires_grad else None
    other = {name: torch.zeros_like(w) for name, w in lm.named_weights().items()}
    lm.with_weights(other, dropout=True).hidden_at(inputs)
    if family != "albert":
        lm.checkpointing(True).hidden_at(inputs)
    assert digest(model) == before
    assert not any(w.requires_grad for w in lm.named_weights().values())
    # The tensors are shared, not copied: what the owner does to the model is seen.
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 1.0
    assert digest(model) != before
    assert gap(read(lm, batch(lm, [row])[0], at), [logits(model.eval(), row)]) < 1e-5
    assert lm.named_weights().keys() == dict(model.named_parameters()).keys()


def test_an_exception_in_a_forward_leaves_nothing_behind() -> None:
    lm = frozen("llama")
    inputs, at = batch(lm, [[5, 6, 7]])
    expected = read(lm, inputs, at)[0]
    prompt = lm.prefix_from_words(torch.tensor([9, 9]))
    broken = inject_prefix(stack([prompt], lm.embed), torch.tensor([0]), torch.float64)
    with pytest.raises(RuntimeError):
        lm.hidden_at(inputs, broken)
    assert torch.equal(read(lm, inputs, at)[0], expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_other_weights_are_those_of_a_model_that_has_them(family: str) -> None:
    lm, donor = frozen(family), build(family, seed=1)
    row = [5, 6, 7, 8]
    theirs = [logits(donor, row)]
    weights = {name: w.detach().clone().requires_grad_() for name, w in donor.named_parameters()}
    mine = [read(lm, *batch(lm, [row]))[0]]
    changed = lm.with_weights(weights)
    inputs, at = batch(changed, [row])
    assert gap(read(changed, inputs, at), theirs) < 1e-5
    assert gap(mine, theirs) > 1e-3
    assert torch.equal(read(lm, *batch(lm, [row]))[0], mine[0])
    read(changed, inputs, at)[0].logsumexp(-1).sum().backward()
    out = donor.requires_grad_(True)(
        inputs_embeds=inputs.embed_BSD.detach(), attention_mask=torch.ones(1, 4, dtype=torch.long)
    )
    out.logits.logsumexp(-1).sum().backward()
    for name, parameter in donor.named_parameters():
        ours = weights[name].grad
        if parameter.grad is None or ours is None:
            continue
        if parameter is not donor.get_input_embeddings().weight:  # ours went through the embedding as well
            assert gap([ours], [parameter.grad]) < 1e-5
    # In-place updates of the leaves are seen by the view; a tied matrix moves at both ends.
    embedding = next(n for n, p in donor.named_parameters() if p is donor.get_input_embeddings().weight)
    with torch.no_grad():
        weights[embedding] += 0.5
        donor.get_input_embeddings().weight += 0.5
    assert gap(read(changed, *batch(changed, [row])), [logits(donor.eval(), row)]) < 1e-5


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ModelError, match=r"has no weight nowhere.weight; named_weights\(\) lists"):
        frozen("gpt2").with_weights({"nowhere.weight": torch.zeros(1)})


def test_dropout_runs_only_where_it_is_asked_for() -> None:
    lm = frozen("bert")
    inputs, at = batch(lm, [[5, 6, 7]])
    still, moving = lm.with_weights({}), lm.with_weights({}, dropout=True)
    assert torch.equal(read(still, inputs, at)[0], read(lm, inputs, at)[0])
    assert not torch.equal(read(moving, inputs, at)[0], read(moving, inputs, at)[0])


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in WITHOUT_PREFIX])
def test_checkpointing_recomputes_every_layer_once_and_changes_no_number(family: str) -> None:
    lm = frozen(family)
    inputs, _ = batch(lm, sentences(3, seed=31))
    prompt = lm.prefix_from_words(torch.tensor([5, 6, 7]))
    bank = stack([prompt], lm.embed)
    assert bank.keys_TNQHK is not None
    outcomes = []
    for view in (lm, lm.checkpointing(True), lm.checkpointing(True).checkpointing(False)):
        assert isinstance(view, HFLM)
        calls: list[str] = []
        modules = [view._model.get_submodule(name) for name in view._layers]
        hooks = [m.register_forward_pre_hook(lambda *_, calls=calls: calls.append("attention")) for m in modules]
        keys = bank.keys_TNQHK.clone().requires_grad_()
        given = dataclasses.replace(bank, keys_TNQHK=keys)
        hidden_BRD = view.hidden_at(inputs, inject_prefix(given, torch.zeros(3, dtype=torch.long), lm.dtype))
        forward = len(calls)
        hidden_BRD.square().sum().backward()
        outcomes.append((hidden_BRD.detach(), keys.grad, forward, len(calls) - forward))
        for hook in hooks:
            hook.remove()
    plain, recomputed, off = outcomes
    assert plain[2:] == off[2:] == (3, 0)
    assert recomputed[2:] == (3, 3)
    assert torch.equal(plain[0], recomputed[0])
    assert torch.equal(plain[1], recomputed[1])
    assert float(plain[1].abs().max()) > 0


def test_a_family_whose_layers_cannot_be_recomputed_says_so() -> None:
    with pytest.raises(ModelError, match="of the family albert, whose layers cannot be recomputed; train it without"):
        frozen("albert").checkpointing(True)


def test_checkpointing_with_other_weights_gives_the_same_gradient() -> None:
    lm = frozen("bert")
    inputs, _ = batch(lm, sentences(3, seed=32))
    gradients = []
    for on in (False, True):
        weights = {name: (w * 1.1).detach().requires_grad_() for name, w in lm.named_weights().items()}
        view = lm.with_weights(weights)
        view = view.checkpointing(True) if on else view
        view.hidden_at(inputs).square().sum().backward()
        gradients.append({name: w.grad for name, w in weights.items() if w.grad is not None})
    assert len(gradients[0]) > 40
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-5, rtol=1e-4) for name in gradients[0])


def test_position_beyond_the_context_is_refused() -> None:
    lm = frozen("gpt2")
    prompt = lm.prefix_from_words(torch.tensor([5, 6, 7]))
    inputs, _ = batch(lm, [list(range(5, 67))])
    prefix = inject_prefix(stack([prompt], lm.embed), torch.tensor([0]), lm.dtype)
    assert lm.hidden_at(inputs).shape[1] == 62
    with pytest.raises(ModelError, match=r"A row of 65 positions .* whose context is 64: shorten"):
        lm.hidden_at(inputs, prefix)


def test_log_normaliser_in_chunks_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = frozen("gemma2", torch.float64)
    hidden_XD = torch.randn(9, lm.dims.width, dtype=torch.float64, requires_grad=True)
    whole = lm.log_normaliser(hidden_XD)
    (expected,) = torch.autograd.grad(whole.sum(), hidden_XD)
    monkeypatch.setattr("foreword.models.hf.model.CHUNK", 2 * lm.dims.vocab)
    chunked = lm.log_normaliser(hidden_XD)
    assert torch.allclose(whole, chunked, atol=1e-12)
    assert torch.allclose(expected, torch.autograd.grad(chunked.sum(), hidden_XD)[0], atol=1e-12)
    everything = lm.piece_logits(hidden_XD, torch.arange(lm.dims.vocab)).logsumexp(-1)
    assert torch.allclose(everything, whole, atol=1e-12)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_tiny_models_are_the_same_every_time_and_leave_the_random_state_alone(kind: str) -> None:
    state = torch.get_rng_state()
    one, other = tiny(kind), load({"masked": "foreword-tiny", "causal": "foreword-tiny-causal"}[kind])
    assert torch.equal(state, torch.get_rng_state())
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint().weights != tiny(kind, seed=1).fingerprint().weights
    text = 'naïve "テスト" {x}\t\x00'
    ids = one.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert one.tokenizer.decode(ids) == text


def test_fingerprint_levels_move_one_by_one() -> None:
    lm = frozen("bert")
    print_ = lm.fingerprint()
    wide = wrap(build("bert", torch.float64), byte_tokenizer("causal")).fingerprint()
    assert (wide.weights, wide.shape, wide.dtype) == (print_.weights, print_.shape, "float64")
    name, weight = next(iter(lm.named_weights().items()))
    changed = lm.with_weights({name: weight + 0.1}).fingerprint()
    assert (changed.shape, changed.tokenizer) == (print_.shape, print_.tokenizer)
    assert changed.weights != print_.weights
    assert wrap(build("bert"), byte_tokenizer("masked")).fingerprint().tokenizer != print_.tokenizer
    assert frozen("gpt2").fingerprint().shape != print_.shape


class TestLoad:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        build("bert").save_pretrained(tmp_path)
        byte_tokenizer("masked").save_pretrained(tmp_path)
        return tmp_path

    def test_one_checkpoint_is_both_kinds(self, folder: Path) -> None:
        masked, causal = load(folder), load(str(folder), kind="causal")
        assert (masked.kind, causal.kind) == ("masked", "causal")
        row = [5, 6, 7, 8]
        inputs, at = batch(causal, [row])
        assert gap(read(masked, inputs, at), [logits(build("bert"), row)]) < 1e-5
        bert = transformers.BertLMHeadModel.from_pretrained(folder, is_decoder=True, attn_implementation="eager")
        assert gap(read(causal, inputs, at), [logits(bert, row)]) < 1e-5
        assert gap(read(causal, inputs, at), read(masked, inputs, at)) > 1e-3

    def test_stored_dtype_is_kept_unless_another_is_asked_for(self, folder: Path) -> None:
        build("bert", torch.bfloat16).save_pretrained(folder)
        assert load(folder).dtype == torch.bfloat16
        assert load(folder, dtype="fp32").dtype == torch.float32
        with pytest.raises(ConfigError, match="dtype 'float31' is not known; use one of"):
            load(folder, dtype="float31")

    def test_what_cannot_be_loaded_is_said_in_one_sentence(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"^The model nowhere/at-all cannot be read: ") as told:
            load("nowhere/at-all")
        assert "\n" not in str(told.value)
        with pytest.raises(ModelError, match=r"^The model /nowhere cannot be read: there is no such folder\. Give"):
            load("/nowhere")
        with pytest.raises(ConfigError, match="kind 'encoder' is not known; use masked, causal or seq2seq"):
            load(folder, kind="encoder")
        with pytest.raises(ModelError, match="family bert, which Foreword does not read as a seq2seq model"):
            load(folder, kind="seq2seq")
        config = json.loads((folder / "config.json").read_text())
        config = {"model_type": "longt5", "architectures": ["LongT5Model"], "vocab_size": config["vocab_size"]}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            ModelError, match="family longt5, which Foreword does not read as a causal model; the causal"
        ):
            load(folder)

    def test_a_checkpoint_without_its_head_is_refused(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {name: w for name, w in weights.items() if not name.startswith("cls.")}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks weights that a masked model needs \(cls\.predictions"):
            load(folder)

    def test_a_missing_pad_token_is_no_obstacle(self, folder: Path) -> None:
        tokenizer = byte_tokenizer("causal")
        tokenizer.pad_token = None
        lm = wrap(build("gpt2"), tokenizer)
        assert lm.tokenizer.pad_token == "</s>"
        assert tokenizer.pad_token is None

    def test_only_a_model_with_a_head_is_wrapped(self) -> None:
        with pytest.raises(ModelError, match="takes a transformers model with a language-modelling head; a Linear"):
            wrap(torch.nn.Linear(2, 2), byte_tokenizer("causal"))
        with pytest.raises(ModelError, match="BertModel has no output head"):
            wrap(build("bert").base_model, byte_tokenizer("masked"))


def test_loading_module_brings_in_no_transformers() -> None:
    code = "import sys, foreword.models.load, foreword.models.shared_prefix; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
