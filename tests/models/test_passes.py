"""Work that is left out changes no number: padding that is packed away, positions that nobody reads, leads read once.

python -m pytest tests/models/test_passes.py
"""

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from foreword.core.inject import inject_prefix
from foreword.core.prompts import Bank, PrefixPrompt, SoftPrompt, stack
from foreword.models.base import FrozenLM, Inputs
from foreword.models.encoding.encoder import Encoded, collate, prepare
from foreword.models.hf.lm import HFLM
from foreword.models.hf.unpadded import Packing
from foreword.models.shared_prefix import compile_prefixes
from tests.models.zoo import CAUSAL, CONFIGS, ENCODERS, WITHOUT_PREFIX, batch, frozen, gap, sentences

FP32, FP64, MOVED = 1e-5, 1e-10, 1e-3
PREFIXED = [*CAUSAL, *ENCODERS]
LAYERNORM = ("bert", "bert-decoder", "distilbert", "electra", "gpt2", "gpt-neox", "opt")


def one_read(lm: FrozenLM, side: str) -> tuple[Inputs, Inputs, list[int]]:
    """Padded rows read at one place each, the same rows read everywhere, and the places."""
    inputs, at = batch(lm, sentences(6, seed=41, shortest=7), side, extra=1)
    places = [where.start + (3 * b) % (where.stop - where.start) for b, where in enumerate(at)]
    return dataclasses.replace(inputs, read_BR=torch.tensor(places)[:, None]), inputs, places


def prefixes(lm: FrozenLM, scale: float = 1.0) -> Bank:
    """Two prefixes of different lengths, whose tensors are leaves."""
    draw = torch.Generator().manual_seed(42)
    prompts = []
    for length in (4, 2):
        size = (2, lm.dims.layers, length, lm.dims.heads, lm.dims.head_size)
        keys, values = torch.randn(size, generator=draw, dtype=lm.dtype) * scale
        prompts.append(PrefixPrompt({"self": (keys.requires_grad_(), values.requires_grad_())}, length))
    return stack(prompts, lm.embed)


@pytest.mark.parametrize("family", PREFIXED)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_last_layer_that_answers_one_position_answers_it_the_same(family: str, side: str, kernel) -> None:
    whole = frozen(family, torch.float64)
    assert isinstance(whole, HFLM)
    lm = whole.with_kernel(kernel)
    one, every, places = one_read(lm, side)
    task_B = torch.arange(6) % 2
    for bank in (prefixes(lm), None):
        prefix = None if bank is None else inject_prefix(bank, task_B, lm.dtype)
        pruned = lm.hidden_at(one, prefix)[:, 0]
        full = lm.hidden_at(every, prefix)
        at_BD = full[torch.arange(6), torch.tensor(places)]
        assert gap([pruned], [at_BD]) < FP64
        assert gap([pruned], [full[torch.arange(6), torch.tensor(places).roll(1)]]) > MOVED
        if bank is None:
            continue
        assert bank.keys_TNQHK is not None
        assert bank.values_TNQHK is not None
        leaves = [bank.keys_TNQHK, bank.values_TNQHK]
        weight = torch.randn_like(pruned)
        ours = torch.autograd.grad((pruned * weight).sum(), leaves, retain_graph=True)
        theirs = torch.autograd.grad((at_BD * weight).sum(), leaves)
        # Norms that cast to fp32 inside round the gradient's sums.
        assert gap(ours, theirs) < (FP64 if family in LAYERNORM else FP32)
        assert gap(ours, [t.flip(1) for t in theirs]) > MOVED


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "llama", "gemma2", "modernbert"])
def test_gradients_of_the_weights_are_the_same_where_the_last_layer_answers_one_position(family: str) -> None:
    lm = frozen(family, torch.float64)
    one, every, places = one_read(lm, "right")
    weights = {name: w.detach().clone().requires_grad_() for name, w in lm.named_weights().items()}
    trained = lm.with_weights(weights)
    pruned = trained.hidden_at(one)[:, 0]
    at_BD = trained.hidden_at(every)[torch.arange(6), torch.tensor(places)]
    share = torch.randn_like(pruned)
    names = [name for name in weights if "layer" in name or ".h." in name]
    leaves = [weights[name] for name in names]
    ours = torch.autograd.grad((pruned * share).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((at_BD * share).sum(), leaves, allow_unused=True)
    assert len(leaves) > 15
    for name, mine, other in zip(names, ours, theirs, strict=True):
        assert (mine is None) == (other is None), name
        if mine is not None and other is not None:
            bound = FP64 if family in LAYERNORM else FP32
            assert (mine - other).abs().max() <= bound * max(1.0, float(other.abs().max())), name


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt"])
def test_dropout_runs_in_a_last_layer_that_answers_one_position(family: str) -> None:
    lm = frozen(family, torch.float64)
    one, _, _ = one_read(lm, "right")
    noisy = lm.with_weights(dict(lm.named_weights()), dropout=True)
    first, second = noisy.hidden_at(one), noisy.hidden_at(one)
    assert not torch.allclose(first, second)
    torch.manual_seed(3)
    again = noisy.hidden_at(one)
    torch.manual_seed(3)
    assert torch.equal(again, noisy.hidden_at(one))
    assert torch.equal(lm.hidden_at(one), lm.hidden_at(one)), "the frozen model has none"


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_in_bf16_one_position_is_answered_within_its_rounding(family: str) -> None:
    exact = frozen(family, torch.float64)
    lm = frozen(family, torch.bfloat16)
    one, every, places = one_read(lm, "right")
    pruned = lm.hidden_at(one)[:, 0].double()
    at_BD = lm.hidden_at(every)[torch.arange(6), torch.tensor(places)].double()
    true_BD = exact.hidden_at(dataclasses.replace(one, embed_BSD=one.embed_BSD.double()))[:, 0]
    error = (at_BD - true_BD).norm()
    assert (pruned - true_BD).norm() <= 2 * error
    assert (pruned.roll(1, 0) - true_BD).norm() > 4 * error


@pytest.mark.parametrize("family", PREFIXED)
def test_positions_that_are_not_read_cost_nothing_in_the_last_layer(family: str) -> None:
    """By the FLOP counter: fewer than the library's own layers take, by most of a layer."""
    lm = frozen(family)
    one, every, _ = one_read(lm, "right")
    counts = []
    for inputs in (one, every):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            lm.hidden_at(inputs)
        counts.append(counter.get_total_flops())
    tokens = int(one.attend_BS.sum())
    mlp = 2 * 2 * 32 * 48 * tokens  # width 32, inner width 48 or more: two products at least
    assert counts[0] < counts[1] - 0.8 * mlp


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in WITHOUT_PREFIX])
def test_padding_costs_nothing_outside_attention(family: str) -> None:
    lm = frozen(family)
    rows = sentences(6, seed=43, shortest=3)
    counts = []
    for extra in (0, 20):
        inputs, _ = batch(lm, rows, extra=extra)
        real = dataclasses.replace(inputs, read_BR=inputs.read_BR[:, :1])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            lm.hidden_at(real)
        found = counter.get_flop_counts()["Global"]
        counts.append(sum(n for op, n in found.items() if "bmm" not in str(op) and "attention" not in str(op)))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", LAYERNORM)
def test_packing_pruning_and_prefixes_can_be_differentiated_twice(family: str) -> None:
    lm = frozen(family, torch.float64).second_order()
    inputs, _ = batch(lm, [[5, 6, 7, 8], [9, 10, 11]], "left")
    inputs = dataclasses.replace(inputs, read_BR=inputs.read_BR[:, -1:])
    size = (lm.dims.layers, 2, lm.dims.heads, 2, lm.dims.head_size)
    keys, values = (torch.randn(size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    given = inject_prefix(prefixes(lm), torch.tensor([0, 1]), lm.dtype)
    assert given is not None

    def loss(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        real = torch.tensor([[True, True], [True, False]])
        prefix = dataclasses.replace(
            given, keys_NUHPK=keys, values_NUHPK=values, real_BP=real, start_B=torch.tensor([2, 1]), whole=False
        )
        return lm.hidden_at(inputs, prefix)[:, 0].square().sum()

    assert gradcheck(loss, (keys, values), fast_mode=True)
    assert gradgradcheck(loss, (keys, values), fast_mode=True)


def test_packing_and_spreading_are_each_other_s_transpose() -> None:
    attend_BS = torch.tensor([[True, True, False], [False, True, False], [True, True, True]])
    packing = Packing.of(attend_BS)
    padded = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(packing.pack(padded), padded[attend_BS])
    spread = packing.spread(packed)
    assert torch.equal(spread[attend_BS], packed)
    assert float(spread[~attend_BS].detach().abs().max()) == 0.0
    assert torch.allclose((spread * padded).sum(), (packed * packing.pack(padded)).sum())
    for function, value in ((packing.pack, padded), (packing.spread, packed)):
        assert gradcheck(lambda x, f=function: f(x).pow(3), (value,))
        assert gradgradcheck(lambda x, f=function: f(x).pow(3), (value,))


@pytest.mark.parametrize("family", CAUSAL)
def test_a_shared_beginning_read_once_equals_the_rows_read_whole(family: str) -> None:
    """Two soft prompts between constant words, with beginnings of different lengths; values and gradients, fp64."""
    lm = frozen(family, torch.float64)
    draw = torch.Generator().manual_seed(44)
    soft = [torch.randn(p, lm.dims.width, generator=draw, dtype=torch.float64).requires_grad_() for p in (3, 2)]
    before = ([5, 7, 7, 7, 6], [8, 7, 7])
    slots = ([-1, 0, 1, 2, -1], [-1, 0, 1])
    texts = sentences(6, seed=45, shortest=3, longest=8)
    rows, task = [], [0, 1, 1, 0, 1, 0]
    for text, t in zip(texts, task, strict=True):
        ids = torch.tensor([*before[t], *text]).numpy()
        slot = torch.tensor([*slots[t], *[-1] * len(text)]).numpy()
        rows.append(Encoded(ids, slot, len(ids) - 1, None, shared=len(before[t])))
    bank = stack([SoftPrompt(s) for s in soft], lm.embed)
    inputs, none = prepare(lm, collate(rows), bank, torch.tensor(task))
    assert none is None
    whole = lm.hidden_at(inputs)
    prefixes = compile_prefixes(lm, [row.split()[0] for row in rows[:2]], bank)
    assert [prefix.length for prefix in prefixes] == [5, 3]
    short, prefix = prepare(
        lm, collate([row.split()[1] for row in rows]), stack(prefixes, lm.embed), torch.tensor(task)
    )
    ours = lm.hidden_at(short, prefix)
    assert gap([ours], [whole]) < FP64
    weight = torch.randn_like(whole)
    mine, theirs = (torch.autograd.grad((out * weight).sum(), soft, retain_graph=True) for out in (ours, whole))
    assert gap(mine, theirs) < (FP64 if family in LAYERNORM else FP32)
    swapped = prepare(lm, collate([r.split()[1] for r in rows]), stack(prefixes[::-1], lm.embed), torch.tensor(task))
    assert gap([lm.hidden_at(*swapped)], [whole]) > MOVED
