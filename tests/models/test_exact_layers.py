"""What a layer sees: encoder prefixes, windows, tries, gradients, kernels and memory, against independent references.

python -m pytest tests/models/test_exact_layers.py
"""

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from foreword.core.inject import PrefixBatch, inject_prefix
from foreword.core.prompts import PrefixPrompt, stack
from foreword.models.base import Inputs
from foreword.models.hf.lm import HFLM
from tests.largest import Largest
from tests.models.zoo import CAUSAL, CONFIGS, ENCODERS, VOCAB, batch, build, frozen, gap, logits, read, sentences

FP32, FP64, MOVED = 1e-5, 1e-10, 1e-3
WINDOWED = ("mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
LAYERNORM = ("bert", "bert-decoder", "distilbert", "electra", "gpt2", "gpt-neox", "opt")


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("length", [2, 7])
def test_encoder_prefix_equals_words_that_see_only_each_other(family: str, length: int) -> None:
    """The library, given a 4-D mask in which the words in front cannot see the text, makes the same keys and values."""
    model, lm = build(family), frozen(family)
    words = sentences(1, seed=21, shortest=length, longest=length)[0]
    rows = sentences(3, seed=22, longest=9)
    theirs, open_theirs = [], []
    for row in rows:
        total = length + len(row)
        seen = torch.ones(total, total, dtype=torch.bool)
        open_theirs.append(logits(model, words + row, _masks(family, seen))[length:])
        seen[:length, length:] = False
        theirs.append(logits(model, words + row, _masks(family, seen))[length:])
    inputs, at = batch(lm, rows, "left", extra=1)
    prompt = lm.prefix_from_words(torch.tensor(words))
    prefix = inject_prefix(stack([prompt], lm.embed), torch.zeros(3, dtype=torch.long), lm.dtype)
    ours = read(lm, inputs, at, prefix)
    assert gap(ours, theirs) < FP32
    assert gap(ours, open_theirs) > MOVED


def _masks(family: str, seen: torch.Tensor) -> object:
    """Additive 4-D masks as the library's eager attention takes them; ModernBERT has one a kind of layer."""

    def added(mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, 0.0, torch.finfo(torch.float32).min)[None, None]

    if family != "modernbert":
        return added(seen)
    column = torch.arange(seen.shape[0])
    near = (column[:, None] - column).abs() <= 3  # local_attention 6: three on each side
    return {"full_attention": added(seen), "sliding_attention": added(seen & near)}


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_end_inside_the_prefix(family: str) -> None:
    """A change in the prefix's first column reaches only the positions that the windows let it reach."""
    lm = frozen(family, torch.float64)
    prompt = lm.prefix_from_words(torch.tensor([5, 6, 7, 8, 9]))
    keys, values = (state.clone() for state in prompt.sites["self"])
    windowed = [0, 1, 2] if family in ("mistral", "phi3") else [0, 2]
    values[windowed, :2] += 1.0
    row = sentences(1, seed=23, shortest=14)[0]
    inputs, at = batch(lm, [row])
    zero = torch.tensor([0])
    same, moved = (
        read(lm, inputs, at, inject_prefix(stack([p], lm.embed), zero, lm.dtype))[0]
        for p in (prompt, PrefixPrompt({"self": (keys, values)}, 5))
    )
    # Text position 0 is logical position 5: with windows of 4 it sees columns 2, 3 and 4 only.
    assert float((same - moved).abs().max()) == 0.0
    values[windowed, 2] += 1.0
    nearer = inject_prefix(stack([PrefixPrompt({"self": (keys, values)}, 5)], lm.embed), zero, lm.dtype)
    assert float((same - read(lm, inputs, at, nearer)[0])[0].abs().max()) > MOVED


@pytest.mark.parametrize("family", CAUSAL)
def test_a_trie_equals_one_row_per_branch(family: str) -> None:
    lm = frozen(family, torch.float64)
    stem, one, other = sentences(3, seed=24, shortest=5, longest=7)
    words = torch.tensor([9, 10, 11])
    prefix = inject_prefix(stack([lm.prefix_from_words(words)], lm.embed), torch.tensor([0]), lm.dtype)
    joined, at = batch(lm, [stem + one + other], extra=2)
    total = joined.attend_BS.shape[1]
    assert lm.trie_fits(total)
    position_BS = joined.position_BS.clone()
    fork = len(stem) + len(one)
    position_BS[0, fork : fork + len(other)] = len(stem) + torch.arange(len(other))
    tree_BSS = torch.ones(1, total, total, dtype=torch.bool)
    tree_BSS[0, fork:, len(stem) : fork] = False
    tree = Inputs(joined.embed_BSD, joined.attend_BS, position_BS, joined.read_BR, tree_BSS)
    ours = read(lm, tree, at, prefix)[0]
    for branch, where in ((one, slice(len(stem), fork)), (other, slice(fork, None))):
        inputs, places = batch(lm, [stem + branch])
        alone = read(lm, inputs, places, prefix)[0]
        assert gap([ours[where]], [alone[len(stem) :]]) < FP64
    assert gap([read(lm, dataclasses.replace(tree, tree_BSS=None), at, prefix)[0][fork:]], [ours[fork:]]) > MOVED


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
def test_kernels_agree_on_padded_rows_with_prefixes(family: str) -> None:
    lm = frozen(family, torch.float64)
    assert isinstance(lm, HFLM)
    rows = sentences(5, seed=25)
    prompts = [lm.prefix_from_words(torch.tensor(words)) for words in ([5, 6, 7], [8])]
    prefix = inject_prefix(stack(prompts, lm.embed), torch.arange(5) % 2, lm.dtype)
    for given in (prefix, None):
        for side in ("left", "right"):
            inputs, at = batch(lm, rows, side)
            eager, fused = (read(lm.with_kernel(kernel), inputs, at, given) for kernel in ("eager", "sdpa"))
            # Gemma 2 has a soft cap inside attention, which only matrix products know: it is eager either way.
            assert gap(eager, fused) < FP64


@pytest.mark.parametrize("family", LAYERNORM)
def test_gradients_of_a_prefix_by_finite_differences(family: str) -> None:
    lm = frozen(family, torch.float64).second_order()
    inputs, _ = batch(lm, [[5, 6, 7], [8, 9]], "left")
    size = (lm.dims.layers, 2, lm.dims.heads, 2, lm.dims.head_size)
    keys, values = (torch.randn(size, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def loss(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        real = torch.tensor([[True, True], [True, False]])
        prefix = PrefixBatch(keys, values, real, torch.tensor([2, 1]))
        return lm.log_normaliser(lm.hidden_at(inputs, prefix)[:, 1]).sum()

    assert gradcheck(loss, (keys, values), fast_mode=True)
    assert gradgradcheck(loss, (keys, values), fast_mode=True)


@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_of_a_soft_prompt_are_those_of_the_words(family: str) -> None:
    """Against the library's own autograd, with the words' embeddings as leaves and the whole vocabulary's logits."""
    model, lm = build(family, torch.float64), frozen(family, torch.float64)
    row, wanted = [5, 6, 7, 8, 9, 10], torch.tensor([4, 20])
    theirs_BSD = lm.embed(torch.tensor([row])).detach().requires_grad_()
    out = model(inputs_embeds=theirs_BSD, attention_mask=torch.ones(1, 6, dtype=torch.long)).logits[0, -1]
    (out[wanted].sum() - out.logsumexp(-1)).backward()
    inputs, _ = batch(lm, [row, [11, 12]], "left")
    ours_BSD = inputs.embed_BSD.detach().requires_grad_()
    hidden_XD = lm.hidden_at(dataclasses.replace(inputs, embed_BSD=ours_BSD))[:1, -1]
    (lm.piece_logits(hidden_XD, wanted).sum() - lm.log_normaliser(hidden_XD)[0]).backward()
    assert theirs_BSD.grad is not None
    assert ours_BSD.grad is not None
    # Some families cast to fp32 inside, so fp64 against the library is no closer than fp32.
    assert gap([ours_BSD.grad[0]], [theirs_BSD.grad[0]]) < FP32
    assert gap([ours_BSD.grad[0]], [theirs_BSD.grad[0].flip(0)]) > MOVED
    assert float(ours_BSD.grad[1].abs().max()) == 0.0


@pytest.mark.parametrize("family", CONFIGS)
def test_no_tensor_holds_every_position_s_vocabulary(family: str) -> None:
    lm = frozen(family)
    inputs, _ = batch(lm, sentences(24, seed=26, shortest=14))
    one = dataclasses.replace(inputs, read_BR=inputs.read_BR[:, -1:])
    whole = 24 * 14 * VOCAB
    with Largest() as largest:
        lm.piece_logits(lm.hidden_at(one)[:, 0], torch.tensor([4, 5]))
    assert largest.size < whole
    with Largest() as largest:
        lm.log_normaliser(lm.hidden_at(inputs).flatten(0, 1))
    assert largest.size >= whole  # the control: reading every position does hold it
