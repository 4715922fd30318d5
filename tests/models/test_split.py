"""A model that accelerate has split over devices, the CPU and the disk equals the whole one.

python -m pytest tests/models/test_split.py

What waits on the CPU or the disk is real here. Several devices are played (`tests/models/placed.py`): operations that
mix them fail as on GPUs. A GPU, where there is one, does both in earnest.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from foreword.core.inject import inject_prefix
from foreword.core.prompts import SoftPrompt, stack
from foreword.errors import ModelError
from foreword.methods.registry import make_job, train
from foreword.models.base import FrozenLM
from foreword.models.hf import storage
from foreword.models.hf.lm import HFLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.training.trainer import train_many
from tests.models.placed import Placed, devices, place
from tests.models.zoo import MASKED, batch, build, frozen, gap, logits, read, sentences
from tests.planted import planted_task

FP32, MOVED = 1e-5, 1e-3
TASK = planted_task(6, train=24, validation=8, test=8)
pytestmark = pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")

# Where the blocks of each family may go, in the order in which they run; the last one is the output head.
BLOCKS = {
    "llama": ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.layers.2",
              "model.norm", "lm_head"],
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.h.2",
             "transformer.ln_f", "lm_head"],
    "bert": ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.encoder.layer.2", "cls"],
    "modernbert": ["model.embeddings", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.layers.2",
                   "model.final_norm", "head", "decoder"],
}  # fmt: skip


def tokenizer(family: str) -> Any:
    return byte_tokenizer("masked" if family in MASKED else "causal")


def whole_model(family: str) -> FrozenLM:
    return wrap(build(family), tokenizer(family))


def saved(family: str, folder: Path) -> Path:
    build(family).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder


def on_disk(family: str, folder: Path) -> FrozenLM:
    """Every second block waits on the disk, the embedding and the head among them."""
    blocks = BLOCKS[family]
    where = {name: "cpu" if number % 2 else "disk" for number, name in enumerate(blocks)} | {blocks[-1]: "disk"}
    auto = transformers.AutoModelForMaskedLM if family in MASKED else transformers.AutoModelForCausalLM
    try:
        logits(auto.from_pretrained(saved(family, folder), device_map=where), [5, 6, 7])
    except KeyError:
        pytest.skip(f"transformers {transformers.__version__} itself loses tied weights that are on the disk")
    return load(folder, device_map=where)


def on_cpu(family: str, folder: Path) -> FrozenLM:
    """All of it waits on the CPU and is brought to the device (the CPU as well) module by module."""
    import accelerate

    model = accelerate.cpu_offload(build(family), execution_device=torch.device("cpu"))
    return wrap(model, tokenizer(family))


WAITING: dict[str, Callable[[str, Path], FrozenLM]] = {"disk": on_disk, "cpu": on_cpu}
waiting = pytest.mark.parametrize("way", WAITING)


def prompted(lm: FrozenLM, family: str) -> tuple[list[Any], list[torch.Tensor | None]]:
    """Logits through a prompt and, where the family has one, a prefix; with the gradients of both."""
    rows, draw = sentences(3, seed=4, shortest=5), torch.Generator().manual_seed(3)
    slots = [[0, 1, 2] + [-1] * (len(row) - 3) for row in rows]
    soft_PD = torch.randn(3, lm.dims.width, generator=draw).to(lm.device).requires_grad_()
    bank = stack([SoftPrompt(soft_PD.detach())], lm.embed, lm.device)
    out = read(lm, *batch(lm, rows, extra=1, bank=replace(bank, soft_TPD=soft_PD[None]), slots=slots))
    heads = [lm.prefix_from_words(torch.tensor([5, 6, 7]))]
    bank = stack(heads, lm.embed, lm.device)
    assert bank.keys_TNQHK is not None
    keys = bank.keys_TNQHK.detach().clone().requires_grad_()
    prefix = inject_prefix(replace(bank, keys_TNQHK=keys), torch.zeros(3, dtype=torch.long, device=lm.device), lm.dtype)
    inputs, at = batch(lm, rows)
    out += read(lm, inputs, at, prefix)
    torch.cat([part.square().sum()[None] for part in out]).sum().backward()
    return [part.detach() for part in out], [soft_PD.grad, keys.grad]


def read_last(lm: FrozenLM) -> torch.Tensor:
    """The hidden states of one position of each long row, as classification reads them."""
    inputs, _ = batch(lm, sentences(3, seed=6, shortest=14, longest=14))
    return lm.hidden_at(replace(inputs, read_BR=inputs.read_BR[:, -1:]))


@waiting
@pytest.mark.parametrize("family", BLOCKS)
class TestWaiting:
    def test_logits_and_gradients_are_those_of_the_whole(self, family: str, way: str, tmp_path: Path) -> None:
        lm, whole = WAITING[way](family, tmp_path), frozen(family)
        assert isinstance(lm, HFLM)
        assert storage.waits(lm._model)
        assert lm.device == torch.device("cpu")
        row = [5, 6, 7, 8]
        assert gap(read(lm, *batch(lm, [row])), [logits(build(family), row)]) < FP32
        (ours, slopes), (theirs, whole_slopes) = prompted(lm, family), prompted(whole, family)
        assert gap(ours, theirs) < FP32
        for mine, its in zip(slopes, whole_slopes, strict=True):
            assert mine is not None and its is not None
            assert gap([mine], [its]) < FP32
        assert gap(ours, prompted(wrap(build(family, seed=1), byte_tokenizer("causal")), family)[0]) > MOVED
        assert storage.waits(lm._model)  # and all has gone back to where it waits

    def test_fingerprint_is_that_of_the_whole(self, family: str, way: str, tmp_path: Path) -> None:
        lm = WAITING[way](family, tmp_path)
        assert lm.fingerprint() == whole_model(family).fingerprint()

    def test_log_normaliser_and_features(self, family: str, way: str, tmp_path: Path) -> None:
        lm, whole = WAITING[way](family, tmp_path), frozen(family)
        inputs, _ = batch(lm, [[5, 6, 7, 8]])
        hidden_XD = lm.hidden_at(inputs)[0]
        assert gap([lm.log_normaliser(hidden_XD)], [whole.log_normaliser(hidden_XD)]) < FP32
        assert gap([lm.features(inputs, "mean")], [whole.features(inputs, "mean")]) < FP32
        assert gap([read_last(lm)], [read_last(whole)]) < FP32


@waiting
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_training_is_that_of_the_whole(family: str, method: str, way: str, tmp_path: Path) -> None:
    curves, values = [], []
    for lm in (WAITING[way](family, tmp_path), whole_model(family)):
        options = {"length": 3, "steps": 5, "batch_size": 8, "learning_rate": 0.01, "checkpointing": family == "llama"}
        losses: list[float] = []
        [made] = train_many(
            lm, [make_job(lm, TASK, method, options=options)], progress=lambda step, to=losses: to.append(step.loss)
        )
        assert not isinstance(made, Exception)
        curves.append(torch.tensor(losses))
        values.append(made.artefact.metrics["validation"])
    assert len(set(curves[0].tolist())) >= 5
    assert torch.allclose(curves[0], curves[1], rtol=1e-5)
    assert values[0] == values[1]


@waiting
@pytest.mark.filterwarnings(
    "ignore:You are calling .generate"
)  # older transformers take a resting model's device for it
def test_generation_is_that_of_the_whole(way: str, tmp_path: Path) -> None:
    outs = []
    for lm in (WAITING[way]("llama", tmp_path), frozen("llama")):
        inputs, _ = batch(lm, [[5, 6, 7], [8, 9, 10]])
        prompts = [lm.prefix_from_words(torch.tensor([11, 12]))]
        prefix = inject_prefix(stack(prompts, lm.embed), torch.tensor([0, 0]), lm.dtype)
        outs.append(lm.generate(inputs, prefix, max_new_tokens=5, do_sample=False))
    assert torch.equal(*outs)
    assert outs[0].shape == (2, 5)


def test_the_owner_of_a_split_model_finds_it_as_it_was(tmp_path: Path) -> None:
    """The view has hooks of its own around modules of its own; what waits is shared, and the owner can go on."""
    blocks = BLOCKS["llama"]
    where = {name: "disk" if "layers" in name else "cpu" for name in blocks}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        saved("llama", tmp_path), device_map=where, attn_implementation="eager"
    )
    before = {name: (id(p), p.device) for name, p in model.named_parameters()}
    expected = logits(model, [5, 6, 7])
    hooks = {name: id(m._hf_hook) for name, m in model.named_modules() if storage.hooks_of(m)}
    before = {name: (id(p), p.device) for name, p in model.named_parameters()}
    lm = wrap(model, byte_tokenizer("causal"))
    assert isinstance(lm, HFLM)
    assert gap(read(lm, *batch(lm, [[5, 6, 7]])), [expected]) < FP32
    assert {name: (id(p), p.device) for name, p in model.named_parameters()} == before
    assert {name: id(m._hf_hook) for name, m in model.named_modules() if storage.hooks_of(m)} == hooks
    mine = dict(lm._model.named_modules())
    assert hooks.keys() == {name for name, m in mine.items() if storage.hooks_of(m)}
    for name, module in mine.items():
        for hook in storage.hooks_of(module):
            assert id(hook) != hooks[name]
            assert module.forward.args[0] is module
            assert module._old_forward.__self__ is module
            assert hook.weights_map is storage.hooks_of(model.get_submodule(name))[0].weights_map
    assert lm._model.to.__self__ is lm._model  # accelerate's would move the owner's
    assert torch.equal(logits(model, [5, 6, 7]), expected)


def test_methods_that_need_the_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    lm = on_disk("llama", tmp_path)
    for method in ("fine-tuning", "lora"):
        with pytest.raises(
            ModelError, match="wait on the CPU or the disk until their layer runs and cannot be trained"
        ):
            train(lm, TASK, method, steps=2)


def test_weights_that_nobody_can_bring_are_refused() -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(build("llama").config)
    with pytest.raises(ModelError, match="has no values: it is on the meta device and no hook of accelerate"):
        storage.tensor_of(model.lm_head, "weight")


PLACES = {
    "llama": ["cpu:1", "cpu:1", "cpu:2", "cpu:2", "cpu:3", "cpu:3", "cpu:4"],
    "gpt2": ["cpu:1", "cpu:2", "cpu:2", "cpu:3", "cpu:3", "cpu:4", "cpu:1"],  # the head is the embedding
    "bert": ["cpu:1", "cpu:2", "cpu:2", "cpu:3", "cpu:3"],
    "modernbert": ["cpu:1", "cpu:2", "cpu:2", "cpu:3", "cpu:3", "cpu:4", "cpu:4", "cpu:5"],
}


def spread(family: str) -> FrozenLM:
    """Blocks on several played devices, with the hooks that accelerate gives each."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = build(family)
    for name, where in zip(BLOCKS[family], PLACES[family], strict=True):
        block = model.get_submodule(name)
        place(block, where)
        add_hook_to_module(block, AlignDevicesHook(execution_device=torch.device(where), place_submodules=True))
    place(model, PLACES[family][0])
    return wrap(model, byte_tokenizer("causal"))


def home(tensors: list[Any]) -> list[torch.Tensor]:
    return [t.held if isinstance(t, Placed) else t for t in tensors]


@pytest.mark.parametrize("family", BLOCKS)
def test_blocks_on_several_devices_meet_where_they_must(family: str) -> None:
    with devices():
        lm = spread(family)
        assert lm.device == torch.device("cpu:1")
        ours, slopes = prompted(lm, family)
        assert all(part.device == lm.device for part in ours)
        inputs, _ = batch(lm, [[5, 6, 7, 8]])
        normaliser = lm.log_normaliser(lm.hidden_at(inputs)[0])
        features = [lm.features(inputs, pool) for pool in ("answer", "mean")]
        last = read_last(lm)
    theirs, whole_slopes = prompted(frozen(family), family)
    assert gap(home(ours), theirs) < FP32
    assert gap(home(slopes), whole_slopes) < FP32
    inputs, _ = batch(frozen(family), [[5, 6, 7, 8]])
    assert gap(home([normaliser]), [frozen(family).log_normaliser(frozen(family).hidden_at(inputs)[0])]) < FP32
    assert gap(home(features), [frozen(family).features(inputs, pool) for pool in ("answer", "mean")]) < FP32
    assert gap(home([last]), [read_last(frozen(family))]) < FP32


def test_played_devices_refuse_to_mix() -> None:
    one, other = (Placed(torch.ones(2, 3), torch.device(f"cpu:{n}")) for n in (1, 2))
    with devices():
        with pytest.raises(RuntimeError, match=r"aten::add got tensors on several devices: \['cpu:1', 'cpu:2'\]"):
            one + other
        with pytest.raises(RuntimeError, match="several devices"):
            one + torch.ones(3)
        assert (one + other.to("cpu:1")).device == torch.device("cpu:1")
        assert torch.arange(3, device="cpu:2").device == torch.device("cpu:2")
    with devices():
        lm = spread("llama")
        assert isinstance(lm, HFLM)
        lm._model.get_submodule("model.layers.1")._hf_hook.execution_device = torch.device("cpu:9")
        with pytest.raises(RuntimeError, match="several devices"):
            prompted(lm, "llama")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a model cannot be split between it and the CPU")
@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("way", ["two devices", "cpu waits", "disk waits"])
def test_a_model_split_between_a_gpu_and_the_rest(family: str, way: str, tmp_path: Path) -> None:
    import accelerate

    blocks = BLOCKS[family]
    half = [blocks[0], blocks[-1], *[b for b in blocks[1:-1] if b.endswith((".1", ".2"))]]
    if way == "two devices":
        where: dict[str, Any] = {name: "cpu" if name in half else 0 for name in blocks}
        model = accelerate.dispatch_model(build(family), where, main_device="cpu", force_hooks=True)
        lm = wrap(model, tokenizer(family))
        assert lm.device.type == "cpu"
    else:
        where = {name: way.split()[0] if name in half else 0 for name in blocks}
        lm = load(saved(family, tmp_path), device_map=where)
        assert lm.device.type == "cuda"
    ours, slopes = prompted(lm, family)
    theirs, whole_slopes = prompted(frozen(family), family)
    assert gap([part.cpu() for part in ours], theirs) < 1e-4
    assert gap([s.cpu() for s in slopes if s is not None], [s for s in whole_slopes if s is not None]) < 1e-4
    trained = [
        train(m, TASK, "prompt-tuning", steps=5, length=3, batch_size=8).artefact.metrics["validation"]["nll"]
        for m in (lm, whole_model(family))
    ]
    assert trained[0] == pytest.approx(trained[1], abs=1e-3)
