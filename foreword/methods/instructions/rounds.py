"""Run rounds of proposing and choosing under one budget, and describe them for the record."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from foreword.errors import ConfigError
from foreword.methods.instructions.candidates import Candidate, CandidatePool, CandidateScorer, Score
from foreword.methods.instructions.halving import Cells, Evaluate, halve
from foreword.methods.instructions.search_rows import SearchRows

SHOWN = 10  # candidates that the artefact's record lists

Ranked = Sequence[tuple[Candidate, float]]


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """Hold the winner among the pool's arms, its mean on the `common` rows it was chosen on, and every arm's values."""

    winner: int
    mean: float
    common: int
    spent: int
    values: dict[int, tuple[float, ...]]

    def paired(self) -> dict[int, float]:
        """Return the mean difference of each arm from the winner, on the first rows that both were read on."""
        best = self.values[self.winner]
        return {
            arm: math.fsum(a - b for a, b in zip(v, best, strict=False)) / min(len(v), len(best))
            for arm, v in self.values.items()
        }

    def order(self) -> list[int]:
        """Return the arms, the winner first, then those read on more rows, and among equals those of a higher mean."""
        means = self.means()
        return sorted(means, key=lambda a: (a != self.winner, -len(self.values[a]), -means[a], a))

    def means(self) -> dict[int, float]:
        return {arm: math.fsum(v) / len(v) for arm, v in self.values.items()}


def search(
    pool: CandidatePool,
    rows: int,
    budget: int,
    evaluate: Evaluate,
    *,
    rounds: int = 0,
    keep: int = 5,
    block: int = 1,
    resample: Callable[[Ranked], None] | None = None,
) -> Outcome:
    """Halve the pool; then let `resample` add candidates around the best `keep`, and halve again, `rounds` times.

    The later rounds compare the best, the new candidates, and the pool's first: the template as written, which a choice
    must beat on the same rows. The rounds share the budget; it is spent to the last evaluation, or until every cell is
    read. `block` is as in `halve`.

    Raises: ConfigError for a budget that cannot read every candidate once.
    """
    if budget < len(pool.arms):
        raise ConfigError(
            f"A budget of {budget} evaluations cannot read {len(pool.arms)} candidates once each; give a higher budget "
            "or fewer candidates."
        )
    state = _Rounds(pool, rows, evaluate, block)
    phases = 1 + (rounds if resample else 0)
    field = list(range(len(pool.arms)))
    for phase in range(phases):
        state.halve(field, (budget - state.spent) // (phases - phase))
        if phase + 1 < phases and resample is not None:
            best, before = state.order[:keep], len(pool.arms)
            resample([(pool.arms[a], state.mean(a)) for a in best])
            room = (budget - state.spent) // (phases - phase - 1)
            del pool.arms[before + room :]  # what could not be read once
            field = [*dict.fromkeys([*best, 0]), *range(before, len(pool.arms))]
    if state.spent < budget and len(field) < len(pool.arms):
        state.halve(list(range(len(pool.arms))), budget - state.spent)
    return Outcome(state.order[0], state.best, state.common, state.spent, state.values)


class _Rounds:
    """Hold the values and the ranking of the pool's arms over the rounds."""

    def __init__(self, pool: CandidatePool, rows: int, evaluate: Evaluate, block: int) -> None:
        self._pool, self._rows, self._evaluate, self._block = pool, rows, evaluate, block
        self.values: dict[int, tuple[float, ...]] = {}
        self.order: list[int] = []
        self.spent, self.best, self.common = 0, math.nan, 0

    def mean(self, arm: int) -> float:
        return math.fsum(self.values[arm]) / len(self.values[arm])

    def halve(self, field: Sequence[int], budget: int) -> None:
        def evaluate(cells: Cells) -> Sequence[Sequence[float]]:
            return self._evaluate([(field[arm], rows) for arm, rows in cells])

        known = {i: self.values[arm] for i, arm in enumerate(field) if arm in self.values}
        result = halve(len(field), self._rows, budget, evaluate, block=self._block, known=known)
        self.values |= {field[i]: v for i, v in enumerate(result.values) if v}
        self.order = [field[i] for i in result.ranking]
        self.spent += result.spent
        self.best, self.common = result.mean, result.common


def described(
    pool: CandidatePool, reader: CandidateScorer, rows: SearchRows, outcome: Outcome, score: Score, budget: int
) -> dict[str, Any]:
    """Return the record of a search; computing its metric on the rows of the choice is no part of the budget."""
    winner = pool.arms[outcome.winner]
    metric = reader.values(pool.arms, [(outcome.winner, range(outcome.common))], "metric")[0]
    return {
        "chosen": winner.text or "the template as written",
        "source": winner.source,
        "candidates": len(pool.arms),
        "refused": pool.refused,
        "budget": budget,
        "evaluations": outcome.spent,
        "score": score,
        "selection_score": round(outcome.mean, 6),
        "selection_metric": round(math.fsum(metric) / len(metric), 6),
        "chosen_on_rows": outcome.common,
        "proposal_rows": len(rows.proposal),
        "selection_rows": len(rows.selection),
        "left_out": rows.left_out,
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation, equal values sharing their mean rank; NaN if one side is constant."""
    ranks = [_ranks(np.asarray(x, float)) for x in (one, other)]
    if len(one) < 2 or any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def exhaustive(pool: CandidatePool, reader: CandidateScorer, rows: int, outcome: Outcome) -> dict[str, Any]:
    """Compare the choice with the values of every candidate on every selection row, read outside of the budget.

    `spearman` is of the budgeted differences from the winner, on the rows shared with it, and the exhaustive means;
    `regret` is how much the choice is below the best there, and `choice_rank` its place.
    """
    known = outcome.values
    cells = [(a, range(len(known.get(a, ())), rows)) for a in range(len(pool.arms)) if len(known.get(a, ())) < rows]
    rest = dict(zip([a for a, _ in cells], reader.values(pool.arms, cells), strict=True))
    whole = [math.fsum([*known.get(a, ()), *rest.get(a, ())]) / rows for a in range(len(pool.arms))]
    found = outcome.paired()
    order = sorted(range(len(whole)), key=lambda a: -whole[a])
    correlation = spearman([*found.values()], [whole[a] for a in found])
    return {
        "spearman": None if math.isnan(correlation) else round(correlation, 4),
        "regret": round(whole[order[0]] - whole[outcome.winner], 6),
        "choice_rank": order.index(outcome.winner) + 1,
        "best": pool.arms[order[0]].text,
        "further_evaluations": sum(len(r) for _, r in cells),
    }


def candidates(pool: CandidatePool, outcome: Outcome) -> list[dict[str, Any]]:
    """Return the winner and the best of the others, as the record lists them."""
    means = outcome.means()
    return [
        {
            "text": pool.arms[a].text,
            "source": pool.arms[a].source,
            "rows": len(outcome.values[a]),
            "score": round(means[a], 6),
        }
        for a in outcome.order()[:SHOWN]
    ]
