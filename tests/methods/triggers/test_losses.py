"""python -m pytest tests/methods/triggers/test_losses.py

Acceptance tests 4, 5, 10, 11 and 16: every way to read candidates against one unpadded pass of the library a row,
caches that stay as they are, racing that loses nothing, work that is really saved, and the sums over label words.
"""

import random
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foreword.core.format import Format
from foreword.core.template import Template
from foreword.errors import ConfigError
from foreword.methods.triggers.beam_search import State, descend
from foreword.methods.triggers.detokenise import filled
from foreword.methods.triggers.objective import row_losses
from foreword.methods.triggers.selection_rows import SelectionRows
from tests.methods.triggers.trigger_setups import field_of, plan, word_lm, word_task
from tests.seeds import new_seed

SEED = new_seed()
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def library_loss(model, field, prompt, objective) -> float:
    """The mean loss by the library alone: one row, unpadded, all positions, the whole vocabulary."""
    losses = []
    for block in field.pool.blocks:
        for e, label in zip(block.rows, block.label_B, strict=True):
            ids = torch.from_numpy(filled(e, prompt))[None]
            with torch.no_grad():
                logits_V = model(input_ids=ids).logits[0, e.answer].double()
            assert e.plan is not None
            share_C = torch.stack([logits_V[[w[0] for w in words]].logsumexp(0) for words in e.plan.words])
            if objective == "likelihood":
                share_C = share_C - logits_V.logsumexp(0)
            losses.append(float(row_losses(share_C[None], label[None], objective)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_every_way_of_reading_equals_one_pass_a_row(kind, dtype):
    """Whole rows, rows whose text is cached, and what follows each flipped slot; likelihood and label rows alone."""
    lm, model = word_lm(kind, 20, seed=SEED, dtype=dtype)
    reference = model.set_attn_implementation("eager") or model
    for objective in ("class", "likelihood", "margin"):
        field = field_of(lm, word_task(20, SEED), length=3, objective=objective)
        base = tuple(field.allowed_A[:3].tolist())
        prompts = [base] + [
            (*base[:slot], int(token), *base[slot + 1 :]) for slot in range(3) for token in field.allowed_A[5:8]
        ]
        wanted = [library_loss(reference, field, p, objective) for p in prompts]
        whole = SelectionRows.build(
            lm, field.encoded, [int(y) for b in field.pool.blocks for y in b.label_B], 3, objective, reuse=False
        )
        field.pool.set_base(base)
        for found in (field.pool.losses(prompts), whole.losses(prompts)):
            assert found == pytest.approx(wanted, abs=TOLERANCE[dtype]), (SEED, objective)
            margins = [abs(a - b) for a, b in product(wanted, wanted) if a != b]
            if min(margins) > 2 * TOLERANCE[dtype]:
                assert found.index(min(found)) == wanted.index(min(wanted))
    if kind == "causal":
        assert all(block.way == "cached" for block in field.pool.blocks)
        assert (
            field.pool.blocks[0].tail_tokens(2) < field.pool.blocks[0].tail_tokens(0) < whole.blocks[0].tail_tokens(0)
        )


def test_slots_before_the_text_are_read_once_for_all_rows():
    lm, model = word_lm("causal", 20, seed=SEED)
    task = word_task(20, SEED).with_(template={"causal": "{soft:3} {text} so {answer}"})
    field = field_of(lm, task)
    prompts = [tuple(field.allowed_A[i : i + 3].tolist()) for i in range(4)]
    assert all(block.way == "shared" for block in field.pool.blocks)
    wanted = [library_loss(model, field, p, "class") for p in prompts]
    assert field.pool.losses(prompts) == pytest.approx(wanted, abs=1e-10)


def test_reading_twice_and_in_any_order_gives_the_same_bits():
    lm, _ = word_lm("causal", 20, seed=SEED)
    field = field_of(lm, word_task(20, SEED), length=3)
    base = tuple(field.allowed_A[:3].tolist())
    asked = [(*base[:s], int(t), *base[s + 1 :]) for s in (2, 0, 1) for t in field.allowed_A[4:7]]
    field.pool.set_base(base)
    shapes = [b.bank.keys_TNQHK.shape for b in field.pool.blocks if b.bank is not None]
    first = field.pool.losses(asked)
    field.pool.set_base(asked[0])
    field.pool.losses(asked[:2])
    field.pool.set_base(base)
    one_by_one = [field.pool.losses([p])[0] for p in reversed(asked)][::-1]
    assert field.pool.losses(asked) == first
    assert one_by_one == pytest.approx(first, abs=1e-12)
    assert [b.bank.keys_TNQHK.shape for b in field.pool.blocks if b.bank is not None] == shapes


def test_racing_accepts_what_reading_everything_accepts_and_reads_less():
    lm, _ = word_lm("causal", 40, seed=SEED)
    spared = 0
    for seed in range(5):
        task = word_task(40, seed, rows=16)
        field = field_of(lm, task, seed, length=3)
        labels = [int(y) for b in field.pool.blocks for y in b.label_B]
        pool = SelectionRows.build(lm, field.encoded, labels, 3, "class", block=1)
        rng = random.Random(seed)
        prompts = [tuple(rng.choice(field.allowed_A.tolist()) for _ in range(3)) for _ in range(10)]
        full = pool.race(prompts, [0.0] * 10, float("inf"), shrink=False)
        bound = sorted(m.loss for m in full)[rng.randrange(1, 10)]
        before = pool.read
        raced = pool.race(prompts, [0.0] * 10, bound)
        spared += 10 * pool.rows - (pool.read - before)
        best = min(range(10), key=lambda i: full[i].loss)
        assert min(range(10), key=lambda i: (not raced[i].whole, raced[i].loss)) == best
        assert all(r.loss <= f.loss + 1e-12 for r, f in zip(raced, full, strict=True))
    assert spared > 0


@pytest.mark.parametrize("seed", range(2))
def test_a_raced_search_is_the_full_search(seed):
    """Every accepted step is the same, in searches of up to 12 steps."""
    lm, _ = word_lm("causal", 40, seed=seed)
    ends = []
    for verify in ("race", "all"):
        field = field_of(lm, word_task(40, seed, rows=12), seed, length=3)
        start = tuple(field.allowed_A[:3].tolist())
        state = descend(
            field, plan(verify=verify, steps=12), State.at(start, field.pool.losses([start])[0]), lambda s: None
        )
        ends.append([(s["tried"], s["accepted"]) for s in state.trace if s["accepted"]])
    assert ends[0] == ends[1]


def test_halving_reads_a_quarter_and_its_regret_is_known():
    lm, _ = word_lm("masked", 40, seed=SEED)
    field = field_of(lm, word_task(40, SEED, rows=32), length=3)
    labels = [int(y) for b in field.pool.blocks for y in b.label_B]
    pool = SelectionRows.build(lm, field.encoded, labels, 3, "class", block=4)
    rng = random.Random(SEED)
    prompts = [tuple(rng.choice(field.allowed_A.tolist()) for _ in range(3)) for _ in range(16)]
    full = pool.losses(prompts)
    before = pool.read
    found = pool.halved(prompts, [0.0] * 16, float("inf"))
    read = pool.read - before
    assert read <= len(prompts) * pool.rows // 4 + pool.rows
    [chosen] = [i for i, m in enumerate(found) if m.whole]
    assert found[chosen].loss == pytest.approx(full[chosen], abs=1e-12)
    regret = full[chosen] - min(full)
    assert 0 <= regret < max(full) - min(full)


def test_no_logits_of_all_positions_and_no_row_of_the_vocabulary_but_the_labels(monkeypatch):
    """The output head is asked for label rows of the answer position alone; a cached row is never embedded again."""
    lm, _ = word_lm("causal", 20, seed=SEED)
    field = field_of(lm, word_task(20, SEED), length=3)
    base = tuple(field.allowed_A[:3].tolist())
    field.pool.set_base(base)
    seen: list[tuple[int, int]] = []
    tokens: list[int] = []
    plain, embed = type(lm).piece_logits, type(lm).embed
    monkeypatch.setattr(
        type(lm), "piece_logits", lambda self, h, ids: seen.append((len(h), len(ids))) or plain(self, h, ids)
    )
    monkeypatch.setattr(type(lm), "embed", lambda self, ids: tokens.append(ids.numel()) or embed(self, ids))
    monkeypatch.setattr(type(lm), "vocabulary_logits", lambda self, h: pytest.fail("whole vocabulary"))
    monkeypatch.setattr(type(lm), "log_normaliser", lambda self, h: pytest.fail("whole vocabulary"))
    prompt = (*base[:2], int(field.allowed_A[7]))
    field.pool.losses([prompt])
    assert sum(rows for rows, _ in seen) == field.pool.rows and {pieces for _, pieces in seen} == {2}
    assert sum(tokens) == field.pool.rows  # the flipped slot, which is each row's last token


def test_label_words_are_summed_as_probabilities():
    """-log of the sum over the words; a label word with id 0 is legal, an unknown one is refused, pieces chain."""
    score_BC = torch.randn(4, 3, generator=torch.Generator().manual_seed(SEED)).double().log_softmax(1)
    label_B = torch.tensor([0, 1, 2, 0])
    explicit = -score_BC.exp()[range(4), label_B].log()
    assert torch.allclose(row_losses(score_BC, label_B, "likelihood"), explicit, atol=1e-12)
    assert torch.allclose(row_losses(score_BC, label_B, "class"), explicit, atol=1e-12)  # they are normalised already
    others = score_BC.clone()
    others[range(4), label_B] = -torch.inf
    hinge = (1 - (score_BC[range(4), label_B] - others.max(1).values)).clamp(min=0)
    assert torch.allclose(row_losses(score_BC, label_B, "margin"), hinge, rtol=0, atol=1e-12)
    lm, _ = word_lm("causal", 20, seed=SEED)
    task = word_task(20, SEED)
    with pytest.raises(ConfigError, match="no pieces"):
        field_of(lm, task.with_(label_words={"yes": ("unheard",), "no": ("no",)}))
    form = Format(Template.parse("{text} so {answer}"), ("yes", "no"), (("yes", "w1"), ("no", "w2")))
    assert form.words[0] == ("yes", "w1")
    chained = field_of(lm, task.with_(label_words={"yes": ("w1 w2", "w3"), "no": ("w4", "w5")}), objective="likelihood")
    base = tuple(chained.allowed_A[:2].tolist())
    assert chained.pool.losses([base])[0] > 0


@pytest.mark.parametrize("slot", [0, 2])
def test_operations_are_those_of_the_closed_form(slot):
    """Reading a candidate costs the body's products for the tokens from the flipped slot on, attention over what is
    cached, and two rows of the output matrix: torch's count is within a twentieth."""
    width, layers = 32, 2
    lm, _ = word_lm("causal", 20, seed=SEED, width=width)
    field = field_of(lm, word_task(20, SEED, rows=12), length=3)
    base = tuple(field.allowed_A[:3].tolist())
    field.pool.set_base(base)
    prompt = (*base[:slot], int(field.allowed_A[9]), *base[slot + 1 :])
    with FlopCounterMode(display=False) as counter:
        field.pool.losses([prompt])
    expected = 0
    for block in field.pool.blocks:
        tokens = 3 - slot  # the slots end the row
        columns = int(block.first_B.max()) + 3
        pruned = tokens >= 2  # then the last layer has keys and values of all, and answers the position read alone
        answered = 1 if pruned else tokens
        body = width**2 * (24 * tokens * (layers - 1) + 24 * answered + (6 * tokens if pruned else 0))
        attention = 4 * width * columns * (tokens * (layers - 1) + answered)
        expected += len(block) * (body + attention + 2 * width * 2)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_two_hundred_races_decide_as_two_hundred_full_readings():
    lm, _ = word_lm("causal", 40, seed=SEED)
    field = field_of(lm, word_task(40, SEED, rows=16), length=3)
    labels = [int(y) for b in field.pool.blocks for y in b.label_B]
    pool = SelectionRows.build(lm, field.encoded, labels, 3, "class", block=2)
    rng = random.Random(SEED)
    for _ in range(200):
        prompts = [tuple(rng.choice(field.allowed_A.tolist()) for _ in range(3)) for _ in range(8)]
        full = pool.race(prompts, [0.0] * 8, float("inf"), shrink=False)
        raced = pool.race(prompts, [0.0] * 8, float("inf"))
        best = min(range(8), key=lambda i: full[i].loss)
        assert min(range(8), key=lambda i: (not raced[i].whole, raced[i].loss)) == best
