"""Show training rows with their answers before each row (few-shot)."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from foreword.core.doc import Doc, documented
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
from foreword.tasks.label_metrics import accuracy, nll
from foreword.tasks.rows import Row
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count, Joint, Share


@documented
@dataclass(frozen=True)
class FewShotConfig(HardConfig):
    """Hold the options of few-shot.

    Lu et al. 2022 probe orders with generated texts. Here the texts of the validation rows are read, without labels.
    """

    demos: Annotated[Count | None, Doc("Training rows that are shown (none: as many as fit).")] = None
    select: Annotated[
        Literal["balanced", "random", "validated"],
        Doc("How rows are chosen: balanced over labels, at random, or the balanced set that validates best."),
    ] = "balanced"
    order: Annotated[
        Literal["drawn", "entropy"],
        Doc("How rows are ordered: as drawn, or by the entropy of the predictions (Lu et al. 2022)."),
    ] = "drawn"
    candidates: Annotated[
        Count, Doc("Sets that select=validated compares, and orders that order=entropy compares.")
    ] = 8
    sets: Annotated[Count, Doc("Sets of rows that are drawn; above 1, their prompts form an ensemble.")] = 1
    rule: Annotated[
        Literal["mean", "majority"], Doc("How an ensemble decides: by the mean of the probabilities, or by majority.")
    ] = "mean"
    separator: Annotated[Joint, Doc("Text after each demonstration; \\n is a new line and \\s a space.")] = "\n\n"
    uncut: Annotated[Share, Doc("Share of all rows that the demonstrations must leave whole.")] = 1.0


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

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
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
            return Made(nothing, forms[0], metrics=notes)
        rule: Rule = config.rule
        return Made(Ensemble(tuple(Member(nothing, form) for form in forms), rule), forms[0], metrics=notes)


def describe(counts: Sequence[int], wanted: int, rows: Sequence[Row]) -> dict[str, Any]:
    """Return how many demonstrations stand before a row, how many were asked for, and a hash of the rows."""
    shown = min(counts) if min(counts) == max(counts) else sum(counts) / len(counts)
    hashes = sorted({text_hash(row) for row in rows})
    return {"shown": shown, "asked": wanted, "rows": hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]}


def text_hash(row: Row) -> str:
    return hashlib.sha256(row.text().encode()).hexdigest()


def _one_set(
    lm: FrozenLM, job: Job, config: FewShotConfig, pool: Sequence[Row], beside: Sequence[Row], rng: random.Random
) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of one prompt in their order, and a record of how the order was chosen, if by entropy."""
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
    """Return the set with the best accuracy on the validation rows, then likelihood."""
    rows = [row for row in job.task.validation if row.label is not None]
    if not rows:
        raise ConfigError(
            f"select=validated needs labelled development rows, and {job.task.name!r} has none; give validation rows."
        )
    label = torch.tensor([row.label for row in rows]).numpy()
    scores = [s.double().cpu().numpy() for s in scores_of(lm, _forms(job, config, sets), rows, job.encoded_rows)]
    best = max(range(len(sets)), key=lambda i: (accuracy(scores[i], label), -nll(scores[i], label), -i))
    return sets[best]


def _most_diverse(
    lm: FrozenLM, job: Job, config: FewShotConfig, orders: Sequence[list[Row]]
) -> tuple[list[Row], dict[str, Any]]:
    """Return the order whose predictions of the validation texts have the highest entropy."""
    rows = job.task.validation
    if not rows:
        raise ConfigError(
            f"order=entropy probes with the development rows' texts, and {job.task.name!r} has none; give some."
        )
    scores = scores_of(lm, _forms(job, config, orders), rows, job.encoded_rows)
    entropies = [entropy(score) for score in scores]
    best = max(range(len(orders)), key=lambda i: (*entropies[i], -i))
    record = {
        "chosen": round(entropies[best][0], 4),
        "lowest": round(min(f[0] for f in entropies), 4),
        "orders": len(orders),
    }
    return orders[best], {"order_entropy": record}


def _forms(job: Job, config: FewShotConfig, sets: Sequence[Sequence[Row]]) -> list[Format]:
    return [put(job.format, rows, config.separator) for rows in sets]
