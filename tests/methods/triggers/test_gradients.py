"""python -m pytest tests/methods/triggers/test_gradients.py

Acceptance tests 1 to 3 of the search: gradients against central differences, candidates against brute force,
accumulation against one batch.
"""

import random

import numpy as np
import pytest
import torch

from foreword.methods.triggers.gradients import embeddings_of, first_order, slot_gradient
from foreword.methods.triggers.objective import row_losses
from foreword.methods.triggers.row_block import Block
from foreword.methods.triggers.swaps import propose
from tests.methods.triggers.trigger_setups import field_of, word_lm, word_task
from tests.seeds import new_seed

SEED = new_seed()
KINDS = ("masked", "causal")


@pytest.fixture(params=KINDS)
def field(request):
    lm, _ = word_lm(request.param, 20, seed=SEED)
    return field_of(lm, word_task(20, SEED), length=3)


def loss_at(field, embed_PD) -> float:
    """The mean loss with these embeddings, by whole rows: no cache, no gradient."""
    rows = [
        Block.build(field.lm, b.rows, b.label_B.tolist(), 3, field.objective, reuse=False) for b in field.pool.blocks
    ]
    with torch.no_grad():
        parts = [row_losses(b.soft_scores(embed_PD, range(len(b))), b.label_B, field.objective) for b in rows]
    return float(torch.cat(parts).mean())


@pytest.mark.parametrize("objective", ["class", "likelihood", "margin"])
def test_the_gradient_of_every_slot_equals_central_differences(field, objective):
    field = field_of(field.lm, field.job.task, length=3, objective=objective)
    prompt = tuple(field.allowed_A[:3].tolist())
    embed_PD = embeddings_of(field.lm, prompt)
    loss, grad_PD = slot_gradient(field.lm, field.pool.blocks, embed_PD, objective)
    assert loss == pytest.approx(loss_at(field, embed_PD), abs=1e-12)
    generator = torch.Generator().manual_seed(SEED)
    for slot in range(3):
        for _ in range(8):
            way_PD = torch.zeros_like(embed_PD)
            way_PD[slot] = torch.randn(embed_PD.shape[1], generator=generator, dtype=torch.float64)
            step = 1e-5
            slope = (loss_at(field, embed_PD + step * way_PD) - loss_at(field, embed_PD - step * way_PD)) / (2 * step)
            assert float((grad_PD * way_PD).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-9), (SEED, slot)


def test_first_order_changes_are_the_derivatives_towards_each_token(field):
    prompt = tuple(field.allowed_A[:3].tolist())
    embed_PD = embeddings_of(field.lm, prompt)
    _, grad_PD = slot_gradient(field.lm, field.pool.blocks, embed_PD, field.objective)
    change_PA = first_order(field.lm, grad_PD, prompt, field.allowed_A)
    rng = random.Random(SEED)
    for _ in range(50):
        slot, at = rng.randrange(3), rng.randrange(len(field.allowed_A))
        token = int(field.allowed_A[at])
        if token == prompt[slot]:
            assert float(change_PA[slot, at]) == float("inf")
            continue
        way_PD = torch.zeros_like(embed_PD)
        way_PD[slot] = embeddings_of(field.lm, (token,))[0] - embed_PD[slot]
        step = 1e-6
        slope = (loss_at(field, embed_PD + step * way_PD) - loss_at(field, embed_PD - step * way_PD)) / (2 * step)
        assert float(change_PA[slot, at]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_candidates_are_those_of_a_sorted_product_with_ties_by_slot_and_token(field, sign):
    """Both ways: minimising, and maximising by the negated changes, excluded tokens stay out."""
    prompt = tuple(field.allowed_A[:3].tolist())
    rng = np.random.default_rng(SEED)
    change_PA = torch.from_numpy(rng.integers(-3, 4, (3, len(field.allowed_A)))).double() * sign  # many ties
    for slot in range(3):
        change_PA[slot, slot] = float("inf")
    found = propose(change_PA, prompt, field.allowed_A, 25, seen=set())
    brute = sorted(
        (float(change_PA[slot, at]), slot, int(field.allowed_A[at]))
        for slot in range(3)
        for at in range(len(field.allowed_A))
        if change_PA[slot, at] < float("inf")
    )[:25]
    assert [(c.predicted, c.slots[0], c.prompt[c.slots[0]]) for c in found] == brute
    assert prompt not in [c.prompt for c in found]
    banned = {*field.lm.tokenizer.all_special_ids, field.lm.tokenizer.convert_tokens_to_ids("yes")}
    assert banned.isdisjoint({token for c in found for token in c.prompt})


def test_seen_prompts_and_duplicates_are_not_proposed_again(field):
    prompt = tuple(field.allowed_A[:3].tolist())
    change_PA = torch.randn(3, len(field.allowed_A), generator=torch.Generator().manual_seed(SEED)).double()
    first = propose(change_PA, prompt, field.allowed_A, 10, seen=set())
    seen = {c.prompt for c in first}
    second = propose(change_PA, prompt, field.allowed_A, 10, seen=seen, swaps=3, rng=random.Random(SEED))
    prompts = [c.prompt for c in second]
    assert len(set(prompts)) == len(prompts) == 10 and seen.isdisjoint(prompts)
    assert any(len(c.slots) == 3 for c in second)


def test_any_split_order_and_padding_give_the_same_gradient(field):
    prompt = tuple(field.allowed_A[:3].tolist())
    embed_PD = embeddings_of(field.lm, prompt)
    _, whole = slot_gradient(field.lm, field.pool.blocks, embed_PD, field.objective, tokens=10**6)
    _, single = slot_gradient(field.lm, field.pool.blocks, embed_PD, field.objective, tokens=1)
    assert torch.allclose(whole, single, rtol=0, atol=1e-12)
    rows = [e for b in field.pool.blocks for e in b.rows]
    labels = [int(y) for b in field.pool.blocks for y in b.label_B]
    order = random.Random(SEED).sample(range(len(rows)), len(rows))
    parts = [order[:1], order[1:5], order[5:]]  # a ragged split in another order
    blocks = [
        Block.build(field.lm, [rows[i] for i in p], [labels[i] for i in p], 3, field.objective, reuse=reuse)
        for p, reuse in zip(parts, (True, False, True), strict=True)
    ]
    _, mixed = slot_gradient(field.lm, blocks, embed_PD, field.objective)
    assert torch.allclose(whole, mixed, rtol=0, atol=1e-12)


def test_no_weight_gets_a_gradient(field):
    prompt = tuple(field.allowed_A[:3].tolist())
    slot_gradient(field.lm, field.pool.blocks, embeddings_of(field.lm, prompt), field.objective)
    assert all(w.grad is None and not w.requires_grad for w in field.lm.named_weights().values())
