"""Intervals against independent computations, and their coverage.

Run: python -m pytest tests/evaluation/test_statistics.py
"""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from foreword.evaluation.statistics import MEASURES, Resampled, difference, interval, resample, resample_all
from foreword.tasks.label_metrics import accuracy, ece, log_probabilities, macro_f1, nll

OWN = {"accuracy": accuracy, "macro_f1": macro_f1, "nll": nll, "ece": ece}


def made_up(rows: int, classes: int, seed: int, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label_R = rng.integers(classes, size=rows)
    score_RC = rng.normal(size=(rows, classes)) + skill * (label_R[:, None] == np.arange(classes))
    return log_probabilities(score_RC), label_R


def runs_of(right_SR: np.ndarray) -> list[Resampled]:
    """Runs with two labels whose rows are right (1) or wrong (0) as told."""
    label_R = np.zeros(right_SR.shape[1], dtype=np.int64)
    sure = np.log([0.9, 0.1])
    return [resample("accuracy", np.where(r[:, None] == 1, sure, sure[::-1]), label_R) for r in right_SR]


@pytest.mark.parametrize("name", sorted(MEASURES))
@pytest.mark.parametrize("classes", [2, 5])
def test_point_is_the_metric_itself(name: str, classes: int) -> None:
    logprob_RC, label_R = made_up(97, classes, 3)
    label_R[label_R == classes - 1] = 0  # a label that never occurs but is predicted
    assert resample(name, logprob_RC, label_R).point == pytest.approx(OWN[name](logprob_RC, label_R), abs=1e-12)


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_draws_are_the_metric_of_resampled_rows(name: str) -> None:
    """Each draw equals the metric computed on the rows it names, rebuilt from the same random numbers."""
    logprob_RC, label_R = made_up(40, 4, 1)
    draws_D = resample(name, logprob_RC, label_R, seed=5).draws_D
    rng = np.random.default_rng([5, 40])
    for first in range(0, 400, 200):
        pick_DR = rng.integers(40, size=(200, 40))
        expected = [OWN[name](logprob_RC[pick_R], label_R[pick_R]) for pick_R in pick_DR]
        np.testing.assert_allclose(draws_D[first : first + 200], expected, atol=1e-12)


def test_macro_f1_counts_the_classes_that_scikit_learn_counts() -> None:
    logprob_RC, label_R = made_up(30, 6, 2)
    expected = f1_score(label_R, logprob_RC.argmax(axis=1), average="macro")
    assert resample("macro_f1", logprob_RC, label_R).point == pytest.approx(expected)


def test_one_run_agrees_with_scipy() -> None:
    logprob_RC, label_R = made_up(400, 3, 7)
    for name in ("accuracy", "nll"):
        ours = interval([resample(name, logprob_RC, label_R)])
        if name == "accuracy":
            per_row = (logprob_RC.argmax(axis=1) == label_R).astype(float)
        else:
            per_row = -logprob_RC[np.arange(400), label_R]
        theirs = scipy.stats.bootstrap((per_row,), np.mean, n_resamples=4000, method="percentile", rng=1)
        half = (theirs.confidence_interval.high - theirs.confidence_interval.low) / 2
        assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * half)
        assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * half)
        assert (ours.seeds, ours.rows) == (1, 400)


def test_several_seeds_agree_with_the_sum_of_variances() -> None:
    """With many seeds: variance over rows of the seeds' mean, plus the squared standard error between seeds."""
    rng = np.random.default_rng(0)
    skill_S1 = rng.normal(0.8, 0.05, size=(40, 1))
    right_SR = (rng.random((40, 500)) < skill_S1 + 0.3 * (rng.random(500) - 0.5)).astype(int)
    ours = interval(runs_of(right_SR))
    variance = right_SR.mean(axis=0).var() / 500 + right_SR.mean(axis=1).var(ddof=1) / 40
    assert ours.mean == pytest.approx(right_SR.mean())
    assert (ours.high - ours.low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.1)


def cover(seeds: int, between: float, rng: np.random.Generator, draws: int = 150) -> tuple[float, float, float]:
    """How often 95% intervals hold the true mean: ours, rows alone, and seeds resampled as rows are."""
    hits = np.zeros(3)
    for _ in range(draws):
        ease_R = rng.normal(0, 0.8, 150)
        skill_S = rng.normal(0, between, seeds)
        noise_SR = rng.normal(size=(seeds, 150))
        right_SR = (0.7 + skill_S[:, None] + ease_R + noise_SR > 0).astype(int)
        truth = scipy.stats.norm.cdf(0.7 / (1 + 0.8**2 + between**2) ** 0.5)
        ours = interval(runs_of(right_SR))
        naive = right_SR.mean(axis=0)[rng.integers(150, size=(400, 150))].mean(axis=1)
        picked_DS = rng.integers(seeds, size=(400, seeds))
        plain = naive + right_SR.mean(axis=1)[picked_DS].mean(axis=1) - right_SR.mean()
        hits[0] += ours.low <= truth <= ours.high
        for i, values in ((1, naive), (2, plain)):
            hits[i] += np.quantile(values, 0.025) <= truth <= np.quantile(values, 0.975)
    return tuple(hits / draws)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.evaluation.statistics.DRAWS", 400)


@pytest.mark.usefixtures("few_draws")
def test_coverage_with_three_seeds_that_differ() -> None:
    ours, rows_alone, plain = cover(3, 0.5, np.random.default_rng(1))
    assert ours >= 0.92
    assert rows_alone < 0.7, "the control: without the spread between seeds the interval is far too narrow"
    assert plain < 0.88, "the control: three seeds resampled give too narrow an interval"


@pytest.mark.usefixtures("few_draws")
def test_coverage_where_seeds_do_not_differ() -> None:
    ours, _, _ = cover(5, 0.0, np.random.default_rng(2))
    assert ours >= 0.92


def test_pairing_shows_a_difference_that_unpaired_runs_do_not() -> None:
    """20 of 1,000 rows are gained and 2 lost: certain on the same rows, nothing next to the spread between rows."""
    rng = np.random.default_rng(3)
    base_R = (rng.random(1000) < 0.6).astype(int)
    better_R = base_R.copy()
    better_R[np.flatnonzero(base_R == 0)[:20]] = 1
    better_R[np.flatnonzero(base_R == 1)[:2]] = 0
    better, base = runs_of(np.stack([better_R, base_R]))
    gap = difference([better], [base])
    assert gap.shown
    assert gap.mean == pytest.approx(0.018)
    per_row = better_R - base_R
    assert (gap.high - gap.low) / 2 == pytest.approx(1.96 * per_row.std() / 1000**0.5, rel=0.12)
    shuffled = runs_of(rng.permutation(base_R)[None])
    assert not difference([better], shuffled).shown, "the control: on other rows the same gain is not shown"


@pytest.mark.usefixtures("few_draws")
def test_false_differences_are_shown_in_one_of_twenty() -> None:
    """Two methods of equal skill, four seeds each that differ: about 5% shown."""
    rng = np.random.default_rng(4)
    shown = 0
    for _ in range(100):
        chance_SR = 0.7 + rng.normal(0, 0.05, (8, 1)) + 0.2 * (rng.random(200) - 0.5)
        runs = runs_of((rng.random((8, 200)) < chance_SR).astype(int))
        shown += difference(runs[:4], runs[4:]).shown
    assert shown <= 11


def test_equal_runs_differ_by_nothing_and_all_right_is_not_certainty() -> None:
    right = runs_of(np.ones((2, 50), dtype=int))
    gap = difference(right, right)
    assert (gap.low, gap.high, gap.shown) == (0.0, 0.0, False)
    sure = interval(right[:1])
    assert sure.high == 1.0
    assert sure.low == pytest.approx(scipy.stats.binomtest(50, 50).proportion_ci().low)
    wrong = interval(runs_of(np.zeros((1, 50), dtype=int)))
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(scipy.stats.binomtest(0, 50).proportion_ci().high))


def test_bounds_stay_within_the_metric() -> None:
    right_SR = np.ones((3, 100), dtype=int)
    right_SR[0, :30] = 0
    found = interval(runs_of(right_SR))
    assert 0.0 <= found.low < found.mean < found.high <= 1.0


def test_same_seed_same_interval_and_metrics_together_as_alone() -> None:
    logprob_RC, label_R = made_up(60, 3, 9)
    together = resample_all(["ece", "accuracy"], logprob_RC, label_R)
    for name, found in together.items():
        np.testing.assert_array_equal(found.draws_D, resample(name, logprob_RC, label_R).draws_D)
    runs = [resample("nll", *made_up(60, 3, s)) for s in range(3)]
    assert interval(runs) == interval(runs)
    assert interval(runs) != interval(runs, seed=1)


def test_calibration_error_lies_inside_its_interval_and_options_of_a_row_may_be_missing() -> None:
    logprob_RC, label_R = made_up(200, 4, 11)
    found = interval([resample("ece", logprob_RC, label_R)])
    assert found.low < found.mean < found.high
    score_RC = np.where(np.arange(4) >= 2, -np.inf, np.exp(logprob_RC))
    shorter = log_probabilities(score_RC)
    two = log_probabilities(score_RC[:, :2])
    label_R = label_R % 2
    for name in ("accuracy", "nll", "ece"):
        assert resample(name, shorter, label_R).point == pytest.approx(resample(name, two, label_R).point)
