"""Find the best of many arms by successive halving on common rows, for a stated number of evaluations. Pure.

Every arm is read on the rows in one order, so arms are compared on the same rows, and earlier values stay in their
means (Karnin et al. 2013 draw afresh in every round). An arm without a value is never returned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from foreword.errors import ConfigError

Cells = Sequence[tuple[int, range]]  # an arm, and the rows that it is to be read on
Evaluate = Callable[[Cells], Sequence[Sequence[float]]]  # a value for each row of each cell; more is better


@final
@dataclass(frozen=True)
class Halved:
    """Hold the outcome of successive halving.

    `values[a]` are arm a's values on the first rows; `ranking` orders the arms that have some, by the mean over the
    most rows that they shared with the arms that were left. The winner was chosen on `common` rows, and `mean` is its
    mean there; `spent` counts evaluations of this call.
    """

    winner: int
    mean: float
    common: int
    spent: int
    ranking: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]


def halve(
    arms: int,
    rows: int,
    budget: int,
    evaluate: Evaluate,
    *,
    eta: int = 2,
    block: int = 1,
    known: Mapping[int, Sequence[float]] | None = None,
) -> Halved:
    """Spend exactly `budget` evaluations, or as many as there are cells without a value, and return the best arm.

    After each round the best 1/`eta` of the arms go on. If labels alternate in the rows, `block` is the number of
    labels: as far as the budget allows, rounds end after whole turns, since an arm could otherwise win by preferring
    the first label. `known` are values that arms have already, on the first rows.

    Raises: ConfigError if there is nothing to compare.
    """
    if arms < 1 or rows < 1 or budget < 0 or eta < 2 or block < 1:
        raise ConfigError(
            f"A search over {arms} candidates on {rows} rows with a budget of {budget} evaluations and eta={eta} "
            "cannot be made; give one candidate, one row and eta=2, or more."
        )
    state = _State(rows, budget, evaluate, {a: list(v[:rows]) for a, v in (known or {}).items()})
    left = list(range(arms))
    eliminated: list[int] = []  # the last one dropped first
    rounds = _rounds(arms, eta)
    common = 0
    for number in range(rounds):
        # Every round reads a new row, or it would choose on what it knew already.
        step = block if 2 * state.cost(left, min(common + block, rows)) <= state.left else 1
        reachable = state.affordable(left, min(common + step, rows))
        if number == 0 and not reachable:
            raise ConfigError("The budget is 0 evaluations and no candidate has a value; give a budget of 1 or more.")
        if number and len(reachable) < 2:
            break
        eliminated = [a for a in left if a not in reachable] + eliminated
        left = reachable
        keep = math.ceil(len(left) / eta)
        common = state.depth(left, range(common + step, rows, step), keep, rounds - number)
        state.read([(a, common) for a in left])
        common = min(state.count(a) for a in left)
        left.sort(key=lambda a: (-state.mean(a, common), a))
        if len(left) == 1 or number == rounds - 1:
            break
        left, gone = left[:keep], left[keep:]
        eliminated = gone + eliminated
    state.spend_rest([*left, *eliminated])
    common = min(state.count(a) for a in left)
    # One who dropped out and was read as far after all is compared as well.
    rivals = [*left, *(a for a in eliminated if state.count(a) >= common)]
    rivals.sort(key=lambda a: (-state.mean(a, common), a))
    others = [a for a in eliminated if 0 < state.count(a) < common]
    values = tuple(tuple(state.values.get(a, ())) for a in range(arms))
    return Halved(rivals[0], state.mean(rivals[0], common), common, state.spent, (*rivals, *others), values)


def _rounds(arms: int, eta: int) -> int:
    """Return how often the arms are cut to 1/`eta` until one is left, at least 1."""
    count = 0
    while arms > 1:
        arms = math.ceil(arms / eta)
        count += 1
    return max(1, count)


class _State:
    """Hold the values so far, and the number of evaluations left."""

    def __init__(self, rows: int, budget: int, evaluate: Evaluate, values: dict[int, list[float]]) -> None:
        self.rows, self.left, self.spent, self.values = rows, budget, 0, values
        self._evaluate = evaluate

    def count(self, arm: int) -> int:
        return len(self.values.get(arm, ()))

    def mean(self, arm: int, first: int) -> float:
        return math.fsum(self.values[arm][:first]) / first

    def cost(self, arms: Sequence[int], depth: int) -> int:
        return sum(max(0, depth - self.count(a)) for a in arms)

    def affordable(self, arms: Sequence[int], depth: int) -> list[int]:
        """Return the arms, taken in order, that the evaluations left can all read to this depth."""
        results: list[int] = []
        left = self.left
        for arm in arms:
            cost = self.cost([arm], depth)
            if cost <= left:
                results.append(arm)
                left -= cost
        return results

    def depth(self, arms: Sequence[int], depths: range, keep: int, rounds: int) -> int:
        """Return on how many rows, of `depths` or all, the arms are read in this round, the first of `rounds` left.

        That takes an equal share of the budget, and as much more as lets the `keep` arms that go on use up the rest.
        """
        share = self.left // rounds
        deepest, usable = depths[0] if depths else self.rows, 0
        least = deepest
        for depth in (*depths, self.rows):
            cost = self.cost(arms, depth)
            if cost > self.left or (depth > least and cost > share and usable >= self.left):
                break
            deepest, usable = depth, cost + keep * (self.rows - depth)
        return deepest

    def read(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Read each arm up to its depth, and keep the values."""
        cells = [(a, range(self.count(a), depth)) for a, depth in wanted if depth > self.count(a)]
        if not cells:
            return
        for (arm, rows), found in zip(cells, self._evaluate(cells), strict=True):
            values = [float(v) for v in found]
            assert len(values) == len(rows), "one value a row"
            self.values.setdefault(arm, []).extend(values)
            self.left -= len(rows)
            self.spent += len(rows)

    def spend_rest(self, arms: Sequence[int]) -> None:
        """Spend what no round could use on the best arms first, so that their means are of more rows."""
        for arm in arms:
            more = min(self.left, self.rows - self.count(arm))
            self.read([(arm, self.count(arm) + more)])
