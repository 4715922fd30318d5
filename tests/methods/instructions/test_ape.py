"""python -m pytest tests/methods/instructions/test_ape.py

What the search returns, against an executor that obeys what an instruction says, and what is kept apart.
"""

import hashlib
import math
import random
import re

import numpy as np
import pytest
import torch

from foreword.core.template import Template
from foreword.errors import ConfigError, DataError
from foreword.inference.batched import stacked_scores
from foreword.inference.scoring import encode_rows
from foreword.methods.instructions.candidates import NONE, CandidatePool, CandidateScorer, with_instruction
from foreword.methods.instructions.halving import Cells
from foreword.methods.instructions.proposal_prompts import edited, instruction_of
from foreword.methods.instructions.rounds import Ranked, candidates, exhaustive, search, spearman
from foreword.methods.instructions.search_rows import search_rows
from foreword.models.load import load
from foreword.models.tiny import tiny
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.training.answer_log import AnswerLog
from tests.planted import NOUNS, planted_task
from tests.seeds import new_seed

ANSWERS = ("red", "green", "blue")


def stated(mapping: dict[str, str]) -> str:
    return "Answer " + ", ".join(f"{answer} for {noun}" for noun, answer in mapping.items())


class Executor:
    """Obeys the instruction in front of the template; where it says nothing about a noun it guesses."""

    def __init__(self, rows: list[Row], pool: CandidatePool, seed: int):
        self.rows, self.pool, self.seed, self.read = rows, pool, seed, 0

    def obey(self, source: str, row: Row) -> str:
        said = dict(reversed(pair) for pair in re.findall(r"(\w+) for (\w+)", source))
        guess = hashlib.sha256(f"{self.seed} {source} {row.text()}".encode()).digest()[0] % 3
        return said.get(row.fields["text"], ANSWERS[guess])

    def __call__(self, cells: Cells) -> list[list[float]]:
        self.read += sum(len(rows) for _, rows in cells)
        sources = [(str(self.pool.arms[arm].format.template.source), rows) for arm, rows in cells]
        return [[float(self.obey(s, self.rows[r]) == self.rows[r].targets[0]) for r in rows] for s, rows in sources]


@pytest.fixture(scope="module")
def lm():
    return tiny("causal", context=4096)


def planted(lm, seed: int, decoys: int = 199, stating: bool = True) -> tuple[CandidatePool, list[Row], str]:
    """A secret mapping of nouns to answers, rows of it, and a pool in which one candidate states it."""
    rng = random.Random(seed)
    nouns = rng.sample(NOUNS, len(NOUNS))
    secret = {noun: rng.choice(ANSWERS) for noun in nouns}
    rows = [Row({"text": noun}, None, (), "", (secret[noun],)) for noun in nouns]
    task = Task([{"text": noun, "targets": secret[noun]} for noun in NOUNS[:20] if noun in secret] * 3, name="secret")
    form = task.format("causal", "{text}: {answer}")
    pool = CandidatePool(lm, lambda text: with_instruction(form, text, "causal"))
    pool.add_as_written()
    others = [{noun: rng.choice(ANSWERS) for noun in nouns} for _ in range(decoys)]
    texts = [*([stated(secret)] if stating else []), *map(stated, others)]
    rng.shuffle(texts)
    for text in texts:
        pool.add(text, "given")
    return pool, rows, stated(secret)


def test_the_one_candidate_that_states_the_secret_mapping_is_returned(lm):
    """With a budget at which uniform sampling finds it in fewer than 60% of the draws."""
    seed = new_seed()
    hits = draws = 0
    for trial in range(6):
        pool, rows, secret = planted(lm, seed + trial)
        executor = Executor(rows, pool, seed)
        outcome = search(pool, len(rows), 900, executor)
        assert pool.arms[outcome.winner].text == secret, (seed, trial)
        assert outcome.spent == executor.read == 900
        value_AR = np.array(executor([(a, range(len(rows))) for a in range(len(pool.arms))]))
        rng = np.random.default_rng(seed + trial)
        for _ in range(50):
            column_AP = rng.integers(len(rows), size=(len(pool.arms), 900 // len(pool.arms)))
            means_A = np.take_along_axis(value_AR, column_AP, 1).mean(1)
            best = rng.choice(np.flatnonzero(means_A == means_A.max()))
            hits += pool.arms[best].text == secret
            draws += 1
    assert hits < 0.6 * draws, (seed, hits, draws)


def test_resampling_adds_arms_around_the_best_and_spends_the_budget(lm):
    """The secret is not among the first candidates; the second resampling proposes it."""
    seed = new_seed()
    pool, rows, secret = planted(lm, seed, decoys=19, stating=False)
    shown: list[Ranked] = []

    def around(best: Ranked) -> None:
        shown.append(best)
        pool.add(secret if len(shown) == 2 else "Answer well", "variation")

    executor = Executor(rows, pool, seed)
    outcome = search(pool, len(rows), 600, executor, rounds=2, keep=3, resample=around)
    assert [len(best) for best in shown] == [3, 3]
    assert outcome.spent == executor.read == 600
    assert pool.arms[outcome.winner].text == secret, seed
    assert len(outcome.values[0]) > 1, "the template as written is compared in every round"
    told = candidates(pool, outcome)
    assert told[0]["text"] == secret and told[0]["source"] == "variation"


def test_a_budget_below_one_row_each_is_refused(lm):
    pool, rows, _ = planted(lm, 3, decoys=9)
    with pytest.raises(ConfigError, match="A budget of 10 evaluations cannot read 11 candidates"):
        search(pool, len(rows), 10, Executor(rows, pool, 3))


@pytest.mark.parametrize("name", ["foreword-tiny", "foreword-tiny-causal"])
def test_values_are_those_of_rows_read_alone_and_come_from_the_ledger_afterwards(name):
    lm = load(name)
    task = planted_task(new_seed(), train=20, validation=0, test=4)
    form = task.format(lm.kind)
    pool = CandidatePool(lm, lambda text: with_instruction(form, text, lm.kind))
    pool.add_as_written()
    assert pool.add("Say yes or no.", "given") and not pool.add("say  YES or no", "given")
    ledger = AnswerLog()
    cells = [(0, range(5)), (1, range(2, 9))]
    found = CandidateScorer(lm, task, task.train, "likelihood", ledger).values(pool.arms, cells)
    for (arm, rows), values in zip(cells, found, strict=True):
        for row, value in zip(rows, values, strict=True):
            one = task.train[row]
            alone = stacked_scores(lm, [NONE], [encode_rows(lm, pool.arms[arm].format, [one])])[0][0]
            p = torch.exp(alone.double())
            assert value == pytest.approx(math.log(float(p[one.label] / p.sum())), abs=1e-5)
    assert CandidateScorer(lm, task, task.train, "likelihood", ledger).values(pool.arms, cells) == found
    right = CandidateScorer(lm, task, task.train, "metric", ledger).values(pool.arms, cells)
    assert {v for values in right for v in values} <= {0.0, 1.0}
    outcome = search(
        pool, 20, 12, lambda c: CandidateScorer(lm, task, task.train, "likelihood", ledger).values(pool.arms, c)
    )
    whole = exhaustive(pool, CandidateScorer(lm, task, task.train, "likelihood", ledger), 20, outcome)
    assert whole["further_evaluations"] == 28
    assert (whole["choice_rank"], whole["regret"] == 0.0) in ((1, True), (2, False))


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_special_tokens_in_a_proposal_do_not_reach_a_template(kind):
    lm = load({"masked": "foreword-tiny", "causal": "foreword-tiny-causal"}[kind])
    form = planted_task(1).format(lm.kind)
    pool = CandidatePool(lm, lambda text: with_instruction(form, text, lm.kind))
    token = lm.tokenizer.mask_token if kind == "masked" else lm.tokenizer.eos_token
    assert not pool.add(f"Answer {token} now", "forward")
    assert not pool.add("long " * 400, "forward"), "no room for a row"
    assert pool.refused == 2
    assert pool.add("Braces {text} and {{mask}} are words", "forward")
    again = Template.parse(pool.arms[-1].format.template.source)
    assert again.fields == form.template.fields and again == pool.arms[-1].format.template


def test_parts_are_disjoint_and_hashed():
    seed = new_seed()
    task = planted_task(seed, train=160, validation=20, test=60)
    twice = task.with_(train=(*task.train, *task.train[:7], *task.test[:5]))
    rows = search_rows(twice, seed, 50, 40)
    again = search_rows(twice, seed, 50, 40)
    assert (rows.proposal, rows.selection) == (again.proposal, again.selection)
    texts = [{hashlib.sha256(r.text().encode()).hexdigest() for r in part}
             for part in (rows.proposal, rows.selection, task.test)]  # fmt: skip
    assert len(rows.proposal) == 50 and len(rows.selection) == 40
    for i in range(3):
        for j in range(i):
            assert not texts[i] & texts[j]
    assert rows.left_out >= 12
    hashes = rows.hashes(twice)
    assert hashes["test"] == task.hashes()["test"]
    assert len({*hashes.values()}) == 3
    assert search_rows(twice, seed + 1, 50, 40).hashes(twice)["proposal"] != hashes["proposal"]
    labels = [row.label for row in rows.selection]
    assert all({*labels[i : i + 2]} == {0, 1} for i in range(0, 40, 2)), "labels take turns"
    with pytest.raises(DataError, match="1 training rows"):
        search_rows(task.with_(train=task.train[:1]), 0, 5, 5)


def test_spearman_is_the_correlation_of_ranks():
    rng = np.random.default_rng(new_seed())
    for _ in range(50):
        one, other = rng.integers(0, 6, 12).astype(float).tolist(), rng.normal(size=12).tolist()
        ranks = [[sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x] for x in (one, other)]
        assert spearman(one, other) == pytest.approx(float(np.corrcoef(ranks[0], ranks[1])[0, 1]))
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (' "Say what it is."\nBecause', "Say what it is."),
        ("\n\n**Instruction:** write it\n", None),
        ("In other words: name the animal :", "Name the animal"),
        ("...\n---\n", None),
        ("", None),
        ("x" * 500, None),
        ("tell\x00 me\u202e more", "Tell me more"),
        ("Repeat this long row of training text please", None),
        ("hello , you ( there ) ' s", "Hello, you (there)'s"),
    ],
)
def test_what_of_an_answer_is_an_instruction(answer, wanted):
    found = instruction_of(answer, [Row({"text": "this long row of training text"}, 0)])
    if answer.startswith("\n\n**"):
        assert found is not None and "write it" in found.lower()
    else:
        assert found == wanted


def test_edits_change_an_instruction_and_leave_its_words():
    rng = random.Random(4)
    texts = {edited("Say whether the film is good", rng) for _ in range(40)}
    assert len(texts) > 8
    assert all(text and text[0].isupper() for text in texts)
    assert edited("", rng) == ""
