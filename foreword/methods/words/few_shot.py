"""Few-shot: training rows with their answers stand before each row, and the frozen model goes on from them."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.values import Ensemble, Member, Rule
from foreword.errors import ConfigError
from foreword.inference.calibration import HardConfig
from foreword.methods.words.demonstrations import (
    count_fitting,
    drawn,
    entropy,
    longest_rows,
    pool_of,
    put,
    scores_of,
)
from foreword.models.base import FrozenLM
from foreword.tasks.metrics import accuracy, nll
from foreword.tasks.rows import Row
from foreword.training.contract import DirectMethod, Found, Job
from foreword.training.options import Count, Joint, Share


@dataclass(frozen=True)
class FewShotConfig(HardConfig):
    """`demos` rows are shown (None: as many training rows as fit), `separator` after each, with \\n for a new line and
    \\s for a space.

    `select`: drawn at "random", "balanced" over labels, or "validated", the best of `candidates` balanced sets on
    development rows. `order`: drawn, or by "entropy", that of `candidates` orders whose predictions of the development
    rows' texts are most diverse (Lu et al. 2022; they probe with generated texts, here the labels are not looked at).
    `sets` above 1 makes an ensemble of so many draws. `uncut` is the share of rows that must stay whole.
    """

    demos: Count | None = None
    select: Literal["balanced", "random", "validated"] = "balanced"
    order: Literal["drawn", "entropy"] = "drawn"
    candidates: Count = 8
    sets: Count = 1
    rule: Literal["mean", "majority"] = "mean"
    separator: Joint = "\n\n"
    uncut: Share = 1.0


class FewShot(DirectMethod):
    name = "few-shot"
    summary = "training rows shown as demonstrations; nothing is trained"
    source = "Brown et al. 2020; Lu et al. 2022 for their order"
    Config = FewShotConfig
    form = "hard"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = True
    freezes_lm = True
    learns = False
    demonstrates = True
    retemplates = True

    def learn(self, lm: FrozenLM, job: Job) -> Found:
        config: FewShotConfig = job.config
        pool = pool_of(job.task)
        beside = longest_rows(lm, job.format, job.task, config.uncut)
        sets, notes = [], {}
        for number in range(config.sets):
            rng = random.Random(f"demonstrations {job.seed} {number}")
            shown, told = _one_set(lm, job, config, pool, beside, rng)
            sets.append(shown)
            notes |= {f"{name}{f' {number}' if config.sets > 1 else ''}": value for name, value in told.items()}
        notes["demonstrations"] = describe(
            [len(s) for s in sets], config.demos or len(pool), [r for s in sets for r in s]
        )
        forms = [put(job.format, shown, config.separator) for shown in sets]
        nothing = HardPrompt.empty()
        if len(forms) == 1:
            return nothing, forms[0], 0, notes
        rule: Rule = config.rule
        return Ensemble(tuple(Member(nothing, form) for form in forms), rule), forms[0], 0, notes


def describe(counts: Sequence[int], asked: int, rows: Sequence[Row]) -> dict[str, Any]:
    """How many demonstrations stand before a row, how many were asked for, and hashes of the rows that they are."""
    shown = min(counts) if min(counts) == max(counts) else sum(counts) / len(counts)
    hashes = sorted({text_hash(row) for row in rows})
    return {"shown": shown, "asked": asked, "rows": hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]}


def text_hash(row: Row) -> str:
    return hashlib.sha256(row.text().encode()).hexdigest()


def _one_set(
    lm: FrozenLM, job: Job, config: FewShotConfig, pool: Sequence[Row], beside: Sequence[Row], rng: random.Random
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one prompt in their order, and what decided."""
    balanced: Literal["random", "balanced"] = "random" if config.select == "random" else "balanced"
    draws = [drawn(pool, balanced, rng) for _ in range(config.candidates if config.select == "validated" else 1)]
    wanted = min(config.demos or len(pool), len(pool))
    # A draw fits or not by the rows that it begins with, so the candidates are compared at the number that all have.
    count = min(count_fitting(lm, job.format, rows[:wanted], beside, config.separator) for rows in draws)
    if not count:
        raise ConfigError(
            f"Not one demonstration fits beside the longest row of {job.task.name!r}; let long rows be cut with "
            "-o uncut=0.95, say, or use a shorter template."
        )
    sets = [_shuffled(rows[:count], rng) for rows in draws]
    if config.select == "validated":
        sets = [_best(lm, job, config, sets)]
    if config.order == "entropy":
        orders = [sets[0], *(_shuffled(sets[0], rng) for _ in range(config.candidates - 1))]
        return _most_diverse(lm, job, config, orders)
    return sets[0], {}


def _shuffled(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    return rng.sample(rows, len(rows))


def _best(lm: FrozenLM, job: Job, config: FewShotConfig, sets: Sequence[list[Row]]) -> list[Row]:
    """The set with the best development accuracy, then likelihood."""
    rows = [row for row in job.task.validation if row.label is not None]
    if not rows:
        raise ConfigError(
            f"select=validated needs labelled development rows, and {job.task.name!r} has none; give validation rows."
        )
    label = torch.tensor([row.label for row in rows]).numpy()
    scores = [s.double().cpu().numpy() for s in scores_of(lm, _forms(job, config, sets), rows)]
    best = max(range(len(sets)), key=lambda i: (accuracy(scores[i], label), -nll(scores[i], label), -i))
    return sets[best]


def _most_diverse(
    lm: FrozenLM, job: Job, config: FewShotConfig, orders: Sequence[list[Row]]
) -> tuple[list[Row], dict[str, Any]]:
    """The order whose predictions of the development texts have the highest entropy, over rows and then within them."""
    rows = job.task.validation
    if not rows:
        raise ConfigError(
            f"order=entropy probes with the development rows' texts, and {job.task.name!r} has none; give some."
        )
    found = [entropy(score) for score in scores_of(lm, _forms(job, config, orders), rows)]
    best = max(range(len(orders)), key=lambda i: (*found[i], -i))
    told = {"chosen": round(found[best][0], 4), "lowest": round(min(f[0] for f in found), 4), "orders": len(orders)}
    return orders[best], {"order_entropy": told}


def _forms(job: Job, config: FewShotConfig, sets: Sequence[Sequence[Row]]) -> list[Format]:
    return [put(job.format, rows, config.separator) for rows in sets]
