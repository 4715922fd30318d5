"""Label words beyond number are scored in parts, to the same scores and within a bounded memory.

python -m pytest tests/models/test_parts.py
"""

import itertools
import random

import pytest
import torch

from foreword.core.format import Format
from foreword.core.prompts import SoftPrompt, stack
from foreword.core.template import Template
from foreword.models import label_parts
from foreword.models.encoding import label_layout
from foreword.models.encoding.encoder import Encoder, PlainRow
from foreword.models.encoding.label_layout import LabelPlan
from foreword.models.score import score, score_all
from tests.live import Live
from tests.models.test_score import made

ROWS = [PlainRow({"text": text}) for text in ("a fine film with great actors", "dull", "the team won the last game")]
SMALL = {"COLUMNS": 7, "PASSES": 2, "CELLS": 200, "TABLE": 60, "FEW": 0}


def words_of(rng: random.Random, count: int, each: int, longest: int) -> tuple[tuple[str, ...], ...]:
    """Label words of letters, some the beginning of others."""
    found: set[str] = set()
    while len(found) < count * each:
        found.add("".join(rng.choices("abcde", k=rng.randint(1, longest))))
    flat = sorted(found)
    rng.shuffle(flat)
    return tuple(tuple(flat[n * each : (n + 1) * each]) for n in range(count))


def rows_of(lm, words, **more):
    source = "{soft:2}{text} it was {mask}, yes." if lm.kind == "masked" else "{soft:2}{text}, it was {answer}"
    form = Format(Template.parse(source), tuple(str(n) for n in range(len(words))), words, **more)
    return Encoder.build(lm, form).encode_rows(ROWS)


def small(monkeypatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(label_layout, name, value)


@pytest.mark.parametrize("pieces", ["mean", "sum"])
@pytest.mark.parametrize("trie", [True, False])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_parts_give_the_scores_and_gradients_of_the_whole(name, trie, pieces, monkeypatch):
    rng = random.Random(f"{name}{trie}{pieces}")
    lm, _ = made(name)
    monkeypatch.setattr(lm, "trie_fits", lambda length: trie)
    words = words_of(rng, rng.randint(3, 12), rng.randint(1, 3), 6)
    more = {"pieces": pieces, "shift": tuple(rng.gauss(0, 1) for _ in words), "temperature": rng.uniform(0.5, 2)}
    embed = torch.randn(2, lm.dims.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(len(ROWS), dtype=torch.long)

    def scored():
        leaf = embed.clone().requires_grad_()
        rows = rows_of(lm, words, **more)
        score_BC = score(lm, rows, stack([SoftPrompt(leaf)], lm.embed), zero)
        score_BC[:, 1].sum().backward()
        assert leaf.grad is not None
        return rows[0].plan.parts(trie), score_BC.detach(), leaf.grad

    monkeypatch.setattr(label_layout, "PASSES", 10**6)
    whole, wanted_BC, gradient = scored()
    assert whole is None
    small(monkeypatch)
    some, found_BC, other = scored()
    assert some is not None and len(some.plans) > 1
    assert (found_BC - wanted_BC).abs().max() < 1e-9 and (other - gradient).abs().max() < 1e-9
    shuffled = label_parts.Parts(
        some.plans, some.label_W[::-1].copy()
    )  # words to other labels: the comparison could fail
    assert not torch.allclose(
        label_parts.joined(rows_of(lm, words, **more)[0].plan, shuffled, torch.randn(1, len(some.label_W))),
        label_parts.joined(rows_of(lm, words, **more)[0].plan, some, torch.randn(1, len(some.label_W))),
    )


def test_labels_of_one_piece_each_are_logits_in_parts_too(monkeypatch):
    lm, _ = made("gpt2")
    probe = Format(Template.parse("{text}, it was {answer}"), tuple("abcdefgh"), tuple((w,) for w in "abfgmnst"))
    words = tuple(probe.words[n] for n, label in enumerate(Encoder.build(lm, probe).plan.words) if len(label[0]) == 1)
    assert len(words) > 4
    zero = torch.zeros(len(ROWS), dtype=torch.long)
    with torch.no_grad():
        bank = stack([SoftPrompt(torch.zeros(2, lm.dims.width, dtype=torch.float64))], lm.embed)
        wanted = score(lm, rows_of(lm, words), bank, zero)
        small(monkeypatch)
        monkeypatch.setattr(label_layout, "CELLS", 3)
        rows = rows_of(lm, words)
        assert rows[0].plan.single and len(rows[0].plan.parts().plans) > 1
        assert (score(lm, rows, bank, zero) - wanted).abs().max() < 1e-9


def test_rows_of_different_labels_are_read_apart_where_their_tables_are_large(monkeypatch):
    """Many labels beside many words of one label: the padded tables of both together would be their product."""
    rng = random.Random(4)
    lm, _ = made("gpt2")
    bank = stack([SoftPrompt(torch.zeros(2, lm.dims.width, dtype=torch.float64))], lm.embed)
    rows = [row for size in ((9, 1), (2, 7), (3, 2)) for row in rows_of(lm, words_of(rng, *size, 5))]
    zero = torch.zeros(len(rows), dtype=torch.long)
    with torch.no_grad():
        wanted = score_all(lm, rows, bank, zero)
        monkeypatch.setattr(label_parts, "TABLES", 200)
        assert len(list(label_parts.groups_of(rows, True))) > 2
        found = score_all(lm, rows, bank, zero)
        alone = torch.cat(
            [
                torch.nn.functional.pad(score(lm, [row], bank, zero[:1]), (0, 9 - row.plan.labels), value=-torch.inf)
                for row in rows
            ]
        )
    real = wanted.isfinite()
    assert (found.isfinite() == real).all() and (found - wanted)[real].abs().max() < 1e-9
    assert (alone - wanted)[real].abs().max() < 1e-9


def test_every_part_keeps_within_the_limits():
    """Whatever the words: each part is within the limits by the layout that it has, and no word is lost or added."""
    rng = random.Random(6)
    limits = {name: getattr(label_layout, name) for name in SMALL}
    for _ in range(60):
        for name, value in {"COLUMNS": rng.randint(3, 40), "PASSES": rng.randint(1, 9), "CELLS": rng.randint(50, 2000),
                            "TABLE": rng.randint(20, 300), "FEW": 0}.items():  # fmt: skip
            setattr(label_layout, name, value)
        try:
            words = {tuple(rng.choices(range(9), k=rng.randint(1, 9))) for _ in range(rng.randint(1, 60))}
            listed = sorted(words, key=lambda _: rng.random())
            cut = sorted({0, len(listed), *rng.sample(range(len(listed)), min(4, len(listed)))})
            given = tuple(tuple(listed[a:b]) for a, b in itertools.pairwise(cut))
            for kind, trie in (("causal", True), ("causal", False), ("masked", True)):
                plan = LabelPlan(kind, given)
                found = plan.parts(trie)
                if found is None:
                    continue
                flat = [word for part in found.plans for (word,) in part.words]
                assert sorted(flat) == sorted(listed)
                assert all(word in given[label] for word, label in zip(flat, found.label_W, strict=True))
                for part in found.plans:
                    layout = part.layout(trie)
                    if part.labels == 1:
                        continue  # one word may take more than all that is allowed
                    assert layout.passes <= label_layout.PASSES or (trie and kind == "causal")
                    assert layout.tail_EK.shape[1] <= label_layout.COLUMNS or not trie
                    assert part.labels * part.longest <= label_layout.TABLE
                    reads = int(layout.masks_E.max()) + layout.tail_EK.shape[1]
                    assert layout.passes * reads * layout.pieces <= label_layout.CELLS
        finally:
            for name, value in limits.items():
                setattr(label_layout, name, value)


def test_memory_does_not_grow_with_the_square_of_the_words(monkeypatch):
    """Four times the words, with the same size of a part: hardly more bytes of tensors at once; whole, far more."""
    rng = random.Random(2)
    lm, _ = made("gpt2")
    bank = stack([SoftPrompt(torch.zeros(2, lm.dims.width, dtype=torch.float64))], lm.embed)

    def peak(count: int, columns: int) -> int:
        monkeypatch.setattr(label_layout, "FEW", 0)
        monkeypatch.setattr(label_layout, "COLUMNS", columns)
        words = words_of(rng, count, 1, 9)
        rows = rows_of(lm, words)[:1]
        with torch.no_grad(), Live() as live:
            score_all(lm, rows, bank, torch.zeros(1, dtype=torch.long))
        return live.peak

    assert peak(240, 30) < 1.7 * peak(60, 30)
    assert peak(240, 10**6) > 4 * peak(240, 30)
