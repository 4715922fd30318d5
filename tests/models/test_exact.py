"""Soft prompts and prefixes give what the words give, for every family, padding and batch.

python -m pytest tests/models/test_exact.py

fp64 is held against the same seam fed words (1e-10), fp32 against the library's own eager attention
(1e-5 * max(1, max |logit|)). Every comparison has a control that must differ.
"""

import pytest
import torch

from foreword.core.inject import inject_prefix
from foreword.core.prompts import PrefixPrompt, SoftPrompt, stack
from foreword.errors import ModelError
from tests.models.zoo import (
    CAUSAL,
    CONFIGS,
    ENCODERS,
    WITHOUT_PREFIX,
    batch,
    build,
    frozen,
    gap,
    logits,
    read,
    sentences,
)

FP32, FP64, MOVED = 1e-5, 1e-10, 1e-3


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_equal_the_library_row_by_row(family: str, side: str) -> None:
    model, lm = build(family), frozen(family)
    rows = sentences(6)
    theirs = [logits(model, row) for row in rows]
    inputs, at = batch(lm, rows, side, extra=2)
    assert gap(read(lm, inputs, at), theirs) < FP32
    seeing_pads = type(inputs)(inputs.embed_BSD, torch.ones_like(inputs.attend_BS), inputs.position_BS, inputs.read_BR)
    if family not in CAUSAL or side == "left":
        assert gap(read(lm, seeing_pads, at), theirs) > MOVED


@pytest.mark.parametrize("family", CONFIGS)
def test_sides_of_padding_agree(family: str) -> None:
    lm = frozen(family, torch.float64)
    rows = sentences(5, seed=3)
    alone = [read(lm, *batch(lm, [row]))[0] for row in rows]
    left, right = (read(lm, *batch(lm, rows, side, extra=3)) for side in ("left", "right"))
    assert gap(left, alone) < FP64
    assert gap(right, alone) < FP64
    assert gap(left, [row.flip(0) for row in alone]) > MOVED


@pytest.mark.parametrize("family", CONFIGS)
def test_soft_prompt_of_word_embeddings_equals_the_words(family: str) -> None:
    model, lm, exact = build(family), frozen(family), frozen(family, torch.float64)
    rows = sentences(4, shortest=6)
    slots = [[-1, 0, 1, 2] + [-1] * (len(row) - 4) for row in rows]
    # The slots' own ids are noise: what stands there must come from the bank.
    noise = [[row[0], 9, 9, 9, *row[4:]] for row in rows]
    for own, tolerance, theirs in (
        (lm, FP32, [logits(model, row) for row in rows]),
        (exact, FP64, read(exact, *batch(exact, rows))),
    ):
        prompts = [SoftPrompt(own.embed(torch.tensor([row[1:4]]))[0]) for row in rows]
        assert gap(read(own, *batch(own, noise, bank=stack(prompts, own.embed), slots=slots)), theirs) < tolerance
        moved = [SoftPrompt(prompt.embed_PD + torch.eye(3, prompt.embed_PD.shape[1])) for prompt in prompts]
        assert gap(read(own, *batch(own, noise, bank=stack(moved, own.embed), slots=slots)), theirs) > MOVED


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("length", [1, 5, 9])
def test_prefix_of_words_equals_the_words(family: str, length: int) -> None:
    model, lm, exact = build(family), frozen(family), frozen(family, torch.float64)
    words = sentences(1, seed=5, shortest=length, longest=length)[0]
    rows = sentences(4, seed=6)
    for own, tolerance, theirs in (
        (lm, FP32, [logits(model, words + row)[length:] for row in rows]),
        (exact, FP64, [row[length:] for row in read(exact, *batch(exact, [words + row for row in rows]))]),
    ):
        prompt = own.prefix_from_words(torch.tensor(words))
        inputs, at = batch(own, rows, "left")
        task_B = torch.zeros(len(rows), dtype=torch.long)
        prefix = inject_prefix(stack([prompt], own.embed), task_B, own.dtype)
        assert gap(read(own, inputs, at, prefix), theirs) < tolerance
        keys, values = prompt.sites["self"]
        for other in (
            PrefixPrompt({"self": (keys + 0.5, values)}, length),
            PrefixPrompt({"self": (keys, values * 1.5)}, length),
        ):
            moved = inject_prefix(stack([other], own.embed), task_B, own.dtype)
            assert gap(read(own, inputs, at, moved), theirs) > MOVED
        early = inject_prefix(stack([PrefixPrompt(prompt.sites, 0)], own.embed), task_B, own.dtype)
        assert gap(read(own, inputs, at, early), theirs) > MOVED


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
def test_batch_of_one_equals_a_batch_of_mixed_prompts(family: str) -> None:
    lm = frozen(family, torch.float64)
    rows = sentences(32, seed=7)
    draw = torch.Generator().manual_seed(8)
    shape = (lm.dims.layers, lm.dims.heads, lm.dims.head_size)

    def random(length: int) -> PrefixPrompt:
        size = (2, shape[0], length, *shape[1:])
        keys, values = torch.randn(size, generator=draw, dtype=torch.float64)
        return PrefixPrompt({"self": (keys, values)}, length)

    soft = SoftPrompt(torch.randn(3, lm.dims.width, generator=draw, dtype=torch.float64))
    prompts = [random(8), random(1), soft, random(5), random(0), random(3)]
    slots = [[2, 0, 1] + [-1] * (len(row) - 3) if b % 6 == 2 else [-1] * len(row) for b, row in enumerate(rows)]
    bank = stack(prompts, lm.embed)
    task_B = torch.arange(32) % 6
    inputs, at = batch(lm, rows, "left", extra=1, bank=bank, slots=slots)
    together = read(lm, inputs, at, inject_prefix(bank, task_B, lm.dtype))
    alone = []
    for b, row in enumerate(rows):
        own = stack([prompts[b % 6]], lm.embed)
        one, where = batch(lm, [row], bank=own, slots=[slots[b]])
        alone += read(lm, one, where, inject_prefix(own, torch.tensor([0]), lm.dtype))
    assert gap(together, alone) < FP64
    swapped = read(lm, inputs, at, inject_prefix(bank, task_B.roll(1), lm.dtype))
    assert gap(swapped, alone) > MOVED


@pytest.mark.parametrize("family", WITHOUT_PREFIX)
def test_families_without_a_prefix_are_refused_by_name(family: str) -> None:
    lm = frozen(family)
    with pytest.raises(ModelError, match=r"family (albert|deberta-v2), whose attention cannot be given a prefix"):
        lm.require_prefix()
    with pytest.raises(ModelError, match="use prompt-tuning"):
        lm.prefix_from_words(torch.tensor([4, 5]))
