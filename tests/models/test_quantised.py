"""Prompts over 8-bit and 4-bit models: what words give, soft prompts and prefixes give, and what trains, trains truly.

python -m pytest tests/models/test_quantised.py

Everything is held against the same quantised model fed words through the library's own eager attention (fp32, 1e-5 *
max(1, max |logit|)), and training against a plain model that holds the dequantised weights.
"""

import copy
import functools
import hashlib
import os
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from foreword.core.artefact import Artefact
from foreword.core.inject import inject_prefix
from foreword.core.prompts import SoftPrompt, stack
from foreword.errors import ArtefactError, ConfigError, ModelError
from foreword.inference.scoring import encode_rows
from foreword.methods import METHODS
from foreword.methods.registry import make_job, train
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check
from foreword.models.hf import storage
from foreword.models.hf.lm import HFLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.training.loop import ExampleRows, Run, fit
from tests.models.zoo import MASKED, VOCAB, batch, build, gap, logits, read, sentences
from tests.planted import planted_task

FP32, MOVED = 1e-5, 1e-3
FAMILIES = ("llama", "qwen3", "bert", "modernbert")  # grouped heads, windows, biases, a tied head with a transform
HOW = ("int8", "int4")
torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not installed (pip install 'foreword[quantise]')"
)
TASK = planted_task(5, train=24, validation=8, test=8)


def recipe(how: str, **options: Any) -> Any:
    """The config of transformers; int4 in groups that divide the zoo's narrow layers."""
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )

    kinds = {
        "int8": lambda: Int8WeightOnlyConfig(),
        "int4": lambda: IntxWeightOnlyConfig(torch.int4, PerGroup(16)),
        "dynamic": lambda: Int8DynamicActivationInt8WeightConfig(),
    }
    return transformers.TorchAoConfig(kinds[how](), **options)


@functools.cache
def checkpoint(family: str, seed: int = 0) -> Path:
    folder = Path(tempfile.mkdtemp())
    build(family, seed=seed).save_pretrained(folder)
    byte_tokenizer("masked" if family in MASKED else "causal").save_pretrained(folder)
    return folder


def library(family: str, folder: Path, **options: Any) -> transformers.PreTrainedModel:
    """The model as transformers itself reads it, attending eagerly."""
    auto = transformers.AutoModelForMaskedLM if family in MASKED else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, attn_implementation="eager", **options).eval()


@functools.cache
def pair(family: str, how: str) -> tuple[HFLM, transformers.PreTrainedModel]:
    """Foreword's quantised model, and the library's."""
    lm = load(checkpoint(family), quantise=recipe(how))
    assert isinstance(lm, HFLM)
    return lm, library(family, checkpoint(family), quantization_config=recipe(how))


def values_of(lm: FrozenLM) -> str:
    """A hash of every number that the model holds, scales included."""
    assert isinstance(lm, HFLM)
    state = hashlib.sha256()
    for name, tensor in storage.tensors_of(lm._model):
        state.update(name.encode() + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def dequantised(lm: HFLM) -> HFLM:
    """A plain model of the numbers that the quantised one stands for."""
    folder = Path(lm.name)
    plain = library(lm.family, folder)
    weights = {name: storage.dequantised(w).clone() for name, w in lm.named_weights().items()}
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(weights[name])
    out = wrap(plain, lm.tokenizer)
    assert isinstance(out, HFLM)
    return out


@torchao
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", HOW)
class TestWords:
    def test_padded_rows_equal_the_quantised_model_fed_words(self, family: str, how: str) -> None:
        lm, model = pair(family, how)
        rows = sentences(5)
        theirs = [logits(model, row) for row in rows]
        for side in ("right", "left"):
            assert gap(read(lm, *batch(lm, rows, side, extra=2)), theirs) < FP32
        assert gap([logits(build(family), row) for row in rows], theirs) > MOVED  # it is rounded indeed

    def test_soft_prompt_of_word_embeddings_equals_the_words(self, family: str, how: str) -> None:
        lm, model = pair(family, how)
        rows = sentences(4, shortest=6)
        slots = [[-1, 0, 1, 2] + [-1] * (len(row) - 4) for row in rows]
        prompts = [SoftPrompt(lm.embed(torch.tensor([row[1:4]]))[0]) for row in rows]
        blank = [[row[0], 9, 9, 9, *row[4:]] for row in rows]
        theirs = [logits(model, row) for row in rows]
        inputs, at = batch(lm, blank, bank=stack(prompts, lm.embed), slots=slots)
        assert gap(read(lm, inputs, at), theirs) < FP32
        prompts[0] = SoftPrompt(prompts[0].embed_PD + torch.eye(3, lm.dims.width))
        inputs, at = batch(lm, blank, bank=stack(prompts, lm.embed), slots=slots)
        assert gap(read(lm, inputs, at)[:1], theirs[:1]) > MOVED

    def test_gradient_of_a_prompt_is_that_of_the_numbers_the_model_stands_for(self, family: str, how: str) -> None:
        lm, _ = pair(family, how)
        rows, weigh = sentences(3, seed=8), torch.randn(VOCAB)
        gradients = []
        for model in (lm, dequantised(lm), load(checkpoint(family))):
            lm.require_gradient()
            leaf = lm.embed(torch.tensor([[5, 6, 7]]))[0].clone().requires_grad_()
            bank = replace(stack([SoftPrompt(leaf.detach())], lm.embed), soft_TPD=leaf[None])
            slots = [[0, 1, 2] + [-1] * (len(row) - 3) for row in rows]
            inputs, at = batch(model, rows, bank=bank, slots=slots)
            torch.cat(read(model, inputs, at)).log_softmax(-1).mul(weigh).sum().backward()
            gradients.append(leaf.grad)
        assert gap(gradients[:1], gradients[1:2]) < FP32
        assert gap(gradients[:1], gradients[2:]) > MOVED


@torchao
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("how", HOW)
def test_prefix_of_words_equals_the_words(family: str, how: str) -> None:
    lm, model = pair(family, how)
    rows = sentences(4, shortest=6)
    theirs = [logits(model, row)[3:] for row in rows]
    inputs, at = batch(lm, [row[3:] for row in rows])
    for source, same in ((lm, True), (load(checkpoint(family)), False)):  # the float model's keys are not its keys
        prompts = [source.prefix_from_words(torch.tensor(row[:3])) for row in rows]
        prefix = inject_prefix(stack(prompts, lm.embed), torch.arange(4), lm.dtype)
        off = gap(read(lm, inputs, at, prefix), theirs)
        assert off < FP32 if same else off > MOVED


@torchao
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize(("family", "how"), [("llama", "int8"), ("bert", "int4")])
def test_training_is_that_of_the_dequantised_model_and_leaves_the_base(family: str, how: str, method: str) -> None:
    lm, _ = pair(family, how)
    before = values_of(lm)
    curves, ends = [], []
    for model in (lm, dequantised(lm), load(checkpoint(family))):
        options = {"length": 3, "steps": 5, "batch_size": 8, "learning_rate": 0.01}
        job = make_job(model, TASK, method, options=options)
        learner = METHODS[method].start(lm, job)  # the same initial prompt for all
        parts = [
            ExampleRows(encode_rows(model, learner.format, part, 3), [row.label for row in part])
            for part in (TASK.train, TASK.validation)
        ]
        run = Run("x", learner, *parts, seed=0)
        losses: list[float] = []
        fit(model, [run], progress=lambda step, losses=losses: losses.append(step.loss))
        curves.append(torch.tensor(losses))
        ends.append(torch.cat([leaf.detach().flatten() for leaf in run.learner.leaves.values()]))
    assert len(set(curves[0].tolist())) >= 5
    assert torch.allclose(curves[0], curves[1], rtol=1e-4)
    assert float((ends[0] - ends[1]).abs().max()) < 1e-3
    assert not torch.allclose(curves[0], curves[2], rtol=1e-4)
    assert values_of(lm) == before
    assert not any(w.requires_grad for w in lm.named_weights().values())


@torchao
def test_a_planted_rule_is_learnt_over_eight_bits() -> None:
    lm = load("foreword-mini", quantise="int8")
    task = planted_task(21, train=160, validation=64, test=100)
    trained = train(lm, task, "prefix-tuning", steps=40, length=4, eval_every=20)
    assert trained.artefact.metrics["validation"]["accuracy"] >= 0.8
    assert trained.artefact.fingerprint["quantisation"] == "torchao Int8WeightOnlyConfig"


class Cutting(nn.Module):
    """A layer of eight-bit numbers; `flows` says which gradient it passes."""

    def __init__(self, flows: str) -> None:
        super().__init__()
        self.in_features, self.flows = 8, flows
        self.register_buffer("rows", torch.randint(-9, 9, (4, 8), dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.rows.float()
        if self.flows == "fails":
            return _NoBackward.apply(x @ matrix.T)
        if self.flows == "half":
            x = 0.5 * x + 0.5 * x.detach()
        return (x @ matrix.T).detach() if self.flows == "none" else x @ matrix.T


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("flows", "found"), [("all", None), ("none", "Cutting"), ("half", "Cutting"), ("fails", "Cutting")]
)
def test_a_layer_that_cuts_the_gradient_is_found(flows: str, found: str | None) -> None:
    model = build("bert")
    model.extra = nn.Sequential(nn.Linear(8, 8), Cutting(flows))
    assert storage.without_gradient(model) == found


@torchao
def test_a_quantisation_that_cuts_the_gradient_is_refused_and_would_be_wrong() -> None:
    lm, _ = pair("llama", "dynamic")
    with pytest.raises(ModelError, match=r"Int8Dynamic\w+\) in Linear layers, which on cpu pass no true gradient"):
        train(lm, TASK, "prompt-tuning", steps=2)
    embed_BSD = lm.embed(torch.tensor([[5, 6, 7, 8]])).requires_grad_()
    inputs, at = batch(lm, [[5, 6, 7, 8]])
    read(lm, replace(inputs, embed_BSD=embed_BSD), at)[0].square().sum().backward()
    got = embed_BSD.grad
    plain = dequantised(lm)
    again = lm.embed(torch.tensor([[5, 6, 7, 8]])).requires_grad_()
    read(plain, replace(inputs, embed_BSD=again), at)[0].square().sum().backward()
    assert got is not None and again.grad is not None
    assert gap([got], [again.grad]) > 0.1  # there is a gradient, without an error, and it is not the model's


@torchao
def test_methods_that_need_the_weights_are_refused_in_a_sentence() -> None:
    lm, _ = pair("llama", "int8")
    for method in ("fine-tuning", "lora"):
        with pytest.raises(
            ModelError, match=r"quantised \(torchao Int8\w+\) and cannot be trained or added to; train a"
        ):
            train(lm, TASK, method, steps=2)
        plain = load(checkpoint("llama"))
        made = train(plain, TASK, method, steps=1, batch_size=4).artefact
        from foreword.inference.scoring import score_rows

        with pytest.raises(ModelError, match="cannot be trained or added to"):
            score_rows(lm, [(made, TASK.test)])


@torchao
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_quantised_output_head_is_read_by_rows(family: str, how: str) -> None:
    model = library(family, checkpoint(family), quantization_config=recipe(how))
    head = model.get_output_embeddings()
    assert storage.is_plain(head.weight)
    from torchao.quantization import quantize_

    if family == "bert":  # its head is tied to the embedding, which stays
        head.weight = nn.Parameter(head.weight.detach().clone())
    quantize_(head, recipe(how).quant_type)
    assert not storage.is_plain(head.weight)
    lm = wrap(model, byte_tokenizer("causal"))
    row = [5, 6, 7, 8, 9]
    inputs, at = batch(lm, [row])
    theirs = logits(model, row)
    assert gap(read(lm, inputs, at), [theirs]) < FP32
    hidden_XD = lm.hidden_at(inputs)[0]
    assert gap([lm.piece_logits(hidden_XD, torch.tensor([7, 3]))], [theirs[:, [7, 3]]]) < FP32
    assert gap([lm.log_normaliser(hidden_XD)], [theirs.logsumexp(-1)]) < FP32


def test_a_head_that_cannot_be_read_by_rows_is_refused() -> None:
    model = build("llama")
    model.lm_head = Cutting("all")
    with pytest.raises(ModelError, match="output head of LlamaForCausalLM is a quantised Cutting, whose rows cannot"):
        wrap(model, byte_tokenizer("causal"))


@torchao
class TestLoading:
    def test_a_stored_quantised_checkpoint_is_the_one_quantised_while_loading(self, tmp_path: Path) -> None:
        lm, model = pair("llama", "int8")
        model.save_pretrained(tmp_path)
        byte_tokenizer("causal").save_pretrained(tmp_path)
        again = load(tmp_path)
        assert again.fingerprint() == lm.fingerprint()
        rows = sentences(2)
        assert gap(read(again, *batch(again, rows)), [logits(model, row) for row in rows]) < FP32
        with pytest.raises(ConfigError, match="is stored quantised; leave quantise out"):
            load(tmp_path, quantise="int8")

    @pytest.mark.parametrize(("how", "distinct"), [("int8", 255), ("int4", 16)])
    def test_the_words_int8_and_int4_name_the_bits(self, how: str, distinct: int, tmp_path: Path) -> None:
        source = load("foreword-tiny-causal")
        assert isinstance(source, HFLM)
        source._model.save_pretrained(tmp_path)
        source.tokenizer.save_pretrained(tmp_path)
        lm = load(tmp_path, quantise=how)
        assert isinstance(lm, HFLM)
        rows = lm._model.get_submodule("model.layers.0.mlp.down_proj").weight.dequantize()
        group_XG = rows.unflatten(1, (-1, 32)) if how == "int4" else rows[:, None]
        most = max(len(group.unique()) for group in group_XG.flatten(0, 1))
        assert 4 < most <= distinct
        assert storage.is_plain(lm._model.get_input_embeddings().weight)

    def test_a_model_in_memory_that_another_hand_quantised_is_wrapped(self) -> None:
        from torchao.quantization import quantize_

        model = build("llama")
        plain = wrap(build("llama"), byte_tokenizer("causal"))
        quantize_(model, recipe("int8").quant_type, filter_fn=lambda m, name: "layers" in name and type(m) is nn.Linear)
        lm = wrap(model, byte_tokenizer("causal"))
        row = [5, 6, 7]
        assert gap(read(lm, *batch(lm, [row])), [logits(model, row)]) < FP32
        assert (lm.fingerprint().shape, lm.fingerprint().kept) == (plain.fingerprint().shape, plain.fingerprint().kept)
        assert lm.fingerprint().quantisation == "Int8Tensor"

    def test_what_cannot_be_quantised_is_said_in_a_sentence(self) -> None:
        with pytest.raises(ModelError, match=r"No layer of .* \(family gpt2\) can be quantised so"):
            load(checkpoint("gpt2"), quantise="int8")
        with pytest.raises(ModelError, match="cannot be quantised so: int4 takes 32 numbers of a row together"):
            load(checkpoint("llama"), quantise="int4")
        with pytest.raises(ConfigError, match="'int3' is not known; use int8, int4 or a quantisation config"):
            load(checkpoint("llama"), quantise="int3")


@torchao
def test_the_command_line_quantises_and_says_where_it_did_not(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from foreword.cli.main import run

    out = str(tmp_path / "made")
    task = ["--data", "builtin:sentiment", "--limit-train", "8", "--limit-test", "8"]
    how = ["--model", "foreword-mini", "--quantise", "int8", "-o", "steps=1", "-o", "batch_size=4", "-o", "length=2"]
    assert run(["train", "prompt-tuning", *how, *task, "--out", out]) == 0
    capsys.readouterr()
    assert run(["predict", out, "a fine film", "--quantise", "int8"]) == 0
    assert "The artefact was made" not in capsys.readouterr().err
    assert run(["predict", out, "a fine film"]) == 0
    told = capsys.readouterr().err
    assert told.count("made with float32 (torchao Int8WeightOnlyConfig) and is used with float32; scores may") == 1
    assert run(["predict", out, "a fine film", "--quantise", "int3"]) == 2


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r"quantise=int8 needs torchao; install it with: pip install 'foreword\[qu"):
        load("foreword-mini", quantise="int8")
    with pytest.raises(ConfigError, match="foreword-tiny is made in memory and is not quantised"):
        load("foreword-tiny", quantise="int8")


def soft_artefact(lm: FrozenLM) -> Artefact:
    return train(lm, TASK, "prompt-tuning", steps=1, length=2, batch_size=4).artefact


def moved(family: str, names: str, by: float = 0.05) -> Path:
    """A checkpoint in which the parameters of these names were trained further."""
    model, folder = build(family), Path(tempfile.mkdtemp())
    with torch.no_grad():
        touched = [p.add_(by * torch.randn_like(p)) for n, p in model.named_parameters() if names in n]
    assert touched
    model.save_pretrained(folder)
    byte_tokenizer("masked" if family in MASKED else "causal").save_pretrained(folder)
    return folder


@torchao
class TestFingerprint:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_quantisation_moves_no_level_but_its_own(self, family: str) -> None:
        plain = load(checkpoint(family)).fingerprint()
        for how in HOW:
            rounded = pair(family, how)[0].fingerprint()
            assert rounded.weights != plain.weights
            assert rounded.quantisation.startswith("torchao Int")
            assert replace(rounded, weights=plain.weights, quantisation="") == plain

    def test_an_artefact_of_the_float_model_is_used_with_one_line(self) -> None:
        plain, lm = load(checkpoint("llama")), pair("llama", "int8")[0]
        line = check(lm, soft_artefact(plain))
        assert line is not None and "\n" not in line
        assert "made with float32 and is used with float32 (torchao Int8WeightOnlyConfig)" in line
        made = soft_artefact(lm)
        assert check(lm, made) is None
        assert "is used with float32; scores" in (check(plain, made) or "")
        assert "(torchao IntxWeightOnlyConfig); scores" in (check(pair("llama", "int4")[0], made) or "")
        half = load(checkpoint("llama"), quantise=recipe("int8"), dtype="bf16")
        assert "is used with bfloat16 (torchao Int8" in (check(half, made) or "")

    @pytest.mark.parametrize("names", ["norm", "embed_tokens"])
    def test_a_fine_tuned_model_is_another_one_quantised_or_not(self, names: str) -> None:
        other = load(moved("llama", names), quantise=recipe("int8"))
        for lm in (load(checkpoint("llama")), pair("llama", "int8")[0]):
            artefact = soft_artefact(lm)
            with pytest.raises(ArtefactError, match="has the same shape but other weights"):
                check(other, artefact)
            assert "other weights" in (check(other, artefact, allow_other_weights=True) or "")

    def test_moved_matrices_are_seen_where_both_are_rounded_alike_and_only_there(self) -> None:
        other = load(moved("llama", "q_proj"), quantise=recipe("int8"))
        with pytest.raises(ArtefactError, match="has the same shape but other weights"):
            check(other, soft_artefact(pair("llama", "int8")[0]))
        line = check(other, soft_artefact(load(checkpoint("llama"))))
        assert "quantised weights cannot be compared, so see that it is the same model" in (line or "")

    def test_an_artefact_from_before_quantisation_was_recorded_is_not_guessed_at(self) -> None:
        plain = load(checkpoint("llama"))
        made = soft_artefact(plain)
        old = replace(made, fingerprint={k: made.fingerprint[k] for k in ("tokenizer", "shape", "weights", "dtype")})
        assert check(plain, old) is None
        with pytest.raises(ArtefactError, match="other weights"):
            check(pair("llama", "int8")[0], old)


class Packed(nn.Linear):
    """As GPTQ and AWQ keep a layer: eight numbers of four bits in a buffer's int32, and no weight at all."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=False)
        scale_O1 = source.weight.detach().abs().amax(1, keepdim=True) / 7
        steps_OI = (source.weight.detach() / scale_O1).round().to(torch.int32) & 15
        shift_8 = torch.arange(0, 32, 4)
        del self.weight
        self.register_buffer("qweight", (steps_OI.unflatten(1, (-1, 8)).long() << shift_8).sum(-1).to(torch.int32))
        self.register_buffer("scales", scale_O1)

    def matrix(self) -> torch.Tensor:
        four = (self.qweight[..., None] >> torch.arange(0, 32, 4)).flatten(1) & 15
        return torch.where(four > 7, four - 16, four) * self.scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix().T


def test_layers_that_keep_their_numbers_in_buffers_are_served_as_well() -> None:
    model, plain = build("llama"), build("llama")
    for layer in model.model.layers:
        layer.mlp.gate_proj = Packed(layer.mlp.gate_proj)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    lm, float_lm = wrap(model, byte_tokenizer("causal")), wrap(plain, byte_tokenizer("causal"))
    assert isinstance(lm, HFLM)
    lm.require_gradient()
    row = [5, 6, 7, 8]
    assert gap(read(lm, *batch(lm, [row])), [logits(model, row)]) < FP32
    ours, theirs = lm.fingerprint(), float_lm.fingerprint()
    assert (ours.quantisation, ours.shape, ours.kept) == ("gptq 4-bit", theirs.shape, theirs.kept)
    other = copy.deepcopy(model)
    other.model.layers[1].mlp.gate_proj.qweight[3, 0] ^= 1
    changed = wrap(other, byte_tokenizer("causal")).fingerprint()
    assert (changed.weights != ours.weights, changed.kept) == (True, ours.kept)
    with pytest.raises(ModelError, match=r"quantised \(gptq 4-bit\) and cannot be trained"):
        train(lm, TASK, "lora", steps=1)
    assert train(lm, TASK, "prompt-tuning", steps=2, length=2, batch_size=4).artefact.metrics["steps"] == 2


ROUNDED = 5e-2  # of layers that round their inputs as well, by columns of the whole batch (bitsandbytes with 8 bits)


def serves(folder: Path, device: str, limit: float | None = None, **options: Any) -> None:
    """A quantised model on a device: a prefix and a soft prompt of words give what the words give, and train."""
    lm = load(folder, device=device, **options)
    rows = sentences(4, shortest=6)
    theirs = read(lm, *batch(lm, rows))
    if limit is None:  # a GPU's kernels add in an order that depends on the batch
        limit = 2e-2 if lm.dtype != torch.float32 else FP32 if device == "cpu" else 10 * FP32
    prompts = [SoftPrompt(lm.embed(torch.tensor([row[:3]]))[0]) for row in rows]
    slots = [[0, 1, 2] + [-1] * (len(row) - 3) for row in rows]
    blank = [[9, 9, 9, *row[3:]] for row in rows]
    ours = read(lm, *batch(lm, blank, bank=stack(prompts, lm.embed, lm.device), slots=slots))
    assert gap(ours, theirs) < limit
    assert gap(read(lm, *batch(lm, blank)), theirs) > limit
    heads = [lm.prefix_from_words(torch.tensor(row[:3])) for row in rows]
    bank = stack(heads, lm.embed, lm.device)
    prefix = inject_prefix(bank, torch.arange(4, device=lm.device), lm.dtype)
    ours = read(lm, *batch(lm, [row[3:] for row in rows]), prefix)
    assert gap(ours, [row[3:] for row in theirs]) < limit
    for method in ("prompt-tuning", "prefix-tuning"):
        lm.require_gradient()
        assert train(lm, TASK, method, steps=3, length=3, batch_size=8).artefact.metrics["steps"] == 3


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: these libraries' kernels need CUDA")


def wide(folder: Path) -> Path:
    """A model of widths that bitsandbytes takes."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=1, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer("causal").save_pretrained(folder)
    return folder


BITS = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@needs_cuda
@bitsandbytes
@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("bits", BITS)
def test_bitsandbytes_on_a_gpu(bits: int, tmp_path: Path) -> None:
    limit = ROUNDED if bits == 8 else None
    serves(wide(tmp_path), "cuda", limit, quantise=transformers.BitsAndBytesConfig(**BITS[bits]))


@bitsandbytes
@pytest.mark.filterwarnings("ignore")  # the library's own
def test_bitsandbytes_on_a_cpu_trains_with_eight_bits_and_is_refused_with_four(tmp_path: Path) -> None:
    serves(wide(tmp_path), "cpu", ROUNDED, quantise=transformers.BitsAndBytesConfig(**BITS[8]))
    lm = load(tmp_path, quantise=transformers.BitsAndBytesConfig(**BITS[4]))
    row = [5, 6, 7, 8]
    before = read(lm, *batch(lm, [row]))
    assert lm.fingerprint().kept == load(tmp_path).fingerprint().kept
    assert torch.equal(before[0], read(lm, *batch(lm, [row]))[0])  # its own state_dict() would have moved it
    assert isinstance(lm, HFLM)
    cut = storage.without_gradient(lm._model)
    if cut is None:
        pytest.skip("on this processor its four-bit kernels have no layout of their own, and pass the gradient")
    with pytest.raises(ModelError, match=r"\(bitsandbytes 4-bit nf4\) in Linear4bit layers, which on cpu pass no true"):
        lm.require_gradient()


@needs_cuda
@pytest.mark.skipif(
    not os.environ.get("FOREWORD_QUANTISED"), reason="FOREWORD_QUANTISED names no folders of GPTQ or AWQ checkpoints"
)
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_stored_gptq_and_awq_checkpoints_on_a_gpu() -> None:
    for folder in os.environ["FOREWORD_QUANTISED"].split(os.pathsep):
        serves(Path(folder), "cuda")


@needs_cuda
@torchao
@pytest.mark.parametrize("how", HOW)
def test_torchao_on_a_gpu(how: str) -> None:
    serves(checkpoint("llama"), "cuda", quantise=recipe(how))
