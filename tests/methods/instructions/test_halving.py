"""python -m pytest tests/methods/instructions/test_halving.py

A thousand simulated problems, drawn when the test runs: what is spent, what is returned, and how good it is beside
references that share no code with the search.
"""

import math

import numpy as np
import pytest

from foreword.errors import ConfigError
from foreword.methods.instructions.halving import halve
from tests.seeds import new_seed

PROBLEMS = 1000


def problem(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Values of arms on rows: the arm's worth, the row's difficulty (shared by all), and what is left; and a budget."""
    arms, rows = int(rng.integers(2, 60)), int(rng.integers(10, 120))
    worth_A1 = rng.normal(0, rng.uniform(0.1, 1), (arms, 1))
    hard_1R = rng.normal(0, rng.uniform(0, 2), (1, rows))
    value_AR = worth_A1 + hard_1R + rng.normal(0, rng.uniform(0.3, 1.5), (arms, rows))
    if rng.random() < 0.5:
        value_AR = (value_AR > 0).astype(float)  # right or wrong
    most = arms * rows
    return value_AR, int(rng.integers(arms, max(arms + 1, min(most, 12 * arms))))


def found(value_AR: np.ndarray, budget: int, **more) -> tuple:
    seen: list[tuple[int, int]] = []

    def evaluate(cells):
        seen.extend((arm, row) for arm, rows in cells for row in rows)
        return [value_AR[arm, rows.start : rows.stop].tolist() for arm, rows in cells]

    return halve(*value_AR.shape, budget, evaluate, **more), seen


def uniform(value_AR, budget, rng):
    """Cells one after the other over shuffled arms and rows drawn anew; the best mean."""
    arms, rows = value_AR.shape
    sums, counts = np.zeros(arms), np.zeros(arms)
    for number in range(budget):
        arm = number % arms
        sums[arm] += value_AR[arm, rng.integers(rows)]
        counts[arm] += 1
    return int(np.argmax(sums / counts))


def ucb(value_AR, budget, rng):
    """Auer et al. 2002, with c = 1 as in the reference implementation of APE, but unvisited arms first."""
    arms, rows = value_AR.shape
    sums, counts = np.zeros(arms), np.zeros(arms)
    for number in range(budget):
        if number < arms:
            arm = number
        else:
            arm = int(np.argmax(sums / counts + np.sqrt(np.log(number) / counts)))
        sums[arm] += value_AR[arm, rng.integers(rows)]
        counts[arm] += 1
    return int(np.argmax(sums / counts))


def plain_halving(value_AR, budget, rng):
    """Karnin et al. 2013, algorithm 1: fresh rows for every arm in every round, only the round's own means count."""
    left = list(range(len(value_AR)))
    rounds = max(1, math.ceil(math.log2(len(left))))
    for _ in range(rounds):
        pulls = max(1, budget // (len(left) * rounds))
        means = [value_AR[a, rng.integers(value_AR.shape[1], size=pulls)].mean() for a in left]
        order = np.argsort(means)[::-1]
        left = [left[i] for i in order[: math.ceil(len(left) / 2)]]
    return left[0]


def test_the_law_over_a_thousand_problems():
    """Exactly the budget, no cell twice, never an arm without a value; and less regret than three references."""
    seed = new_seed(2**32)
    rng = np.random.default_rng(seed)
    gaps: dict[str, list[float]] = {"uniform": [], "ucb": [], "plain_halving": []}
    for number in range(PROBLEMS):
        value_AR, budget = problem(rng)
        block = int(rng.integers(1, 5)) if number % 2 else 1
        result, seen = found(value_AR, budget, block=block)
        assert result.spent == budget == len(seen) == len(set(seen)), (seed, number)
        read = {arm for arm, _ in seen}
        assert result.winner in read and result.common >= 1, (seed, number)
        assert sorted(result.ranking) == sorted(read), (seed, number)
        rows_of = {arm: sorted(row for a, row in seen if a == arm) for arm in read}
        assert all(rows == list(range(len(rows))) for rows in rows_of.values()), "every arm on the same first rows"
        own = value_AR[result.winner, : result.common].mean()
        assert result.mean == pytest.approx(own)
        worth = value_AR.mean(axis=1)
        for name, rule in (("uniform", uniform), ("ucb", ucb), ("plain_halving", plain_halving)):
            gaps[name].append(worth[result.winner] - worth[rule(value_AR, budget, rng)])
    for name, gap in gaps.items():
        z = np.mean(gap) / (np.std(gap, ddof=1) / math.sqrt(len(gap)))
        assert z > 3.1, f"{name}: paired z {z:.2f} (seed {seed})"


@pytest.mark.parametrize("budget", range(1, 61))
def test_any_budget_is_spent_and_what_was_not_read_is_not_returned(budget):
    """Fewer evaluations than arms, more than cells, and all between; values below 0, where a missing 0 would win."""
    rng = np.random.default_rng(budget)
    value_AR = -1 - rng.random((7, 8))
    result, seen = found(value_AR, budget)
    assert result.spent == len(seen) == len(set(seen)) == min(budget, 56)
    assert result.winner in {arm for arm, _ in seen}
    assert result.values[result.winner]
    if budget >= 56:
        assert result.winner == int(value_AR.mean(axis=1).argmax())
        assert result.common == 8


def test_what_is_known_is_not_read_again():
    rng = np.random.default_rng(5)
    value_AR = rng.random((6, 20))
    known = {0: value_AR[0, :9].tolist(), 4: value_AR[4, :20].tolist()}
    result, seen = found(value_AR, 50, known=known)
    assert result.spent == len(seen) == 50
    assert not {(0, r) for r in range(9)} & set(seen)
    assert not {(4, r) for r in range(20)} & set(seen)
    alone, none = found(value_AR[:1], 0, known={0: value_AR[0, :3].tolist()})
    assert (alone.winner, alone.spent, none) == (0, 0, [])


def test_a_known_arm_that_is_good_on_few_rows_is_compared_on_common_ones():
    value_AR = np.array([[1.0] * 2 + [0.0] * 18, [0.6] * 20])
    result, _ = found(value_AR, 30, known={0: [1.0, 1.0]})
    assert result.winner == 1


def test_without_evaluations_or_candidates_it_is_refused():
    for arms, rows, budget in ((0, 5, 5), (3, 0, 5), (3, 5, -1)):
        with pytest.raises(ConfigError, match="cannot be made"):
            halve(arms, rows, budget, lambda cells: [])
    with pytest.raises(ConfigError, match="budget is 0"):
        halve(3, 5, 0, lambda cells: [])


@pytest.mark.parametrize("budget", [600, 800])
def test_the_one_of_two_hundred_that_states_the_rule_is_returned(budget):
    """A planted arm is always right, the others by chance in a third of the rows. Uniform sampling misses it."""
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng([budget, seed])
        value_AR = (rng.random((200, 60)) < 1 / 3).astype(float)
        planted = int(rng.integers(200))
        value_AR[planted] = 1.0
        assert found(value_AR, budget)[0].winner == planted, seed
        hits += uniform(value_AR, budget, rng) == planted
    assert hits < 0.6 * 60
