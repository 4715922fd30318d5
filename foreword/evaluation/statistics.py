"""Compute 95% intervals over test rows and seeds, and paired differences on the same rows.

Every metric (defined in tasks/label_metrics and tasks/corpus_metrics) is a function of sums over rows, so a resample of
the rows is a vector of counts times a matrix. Two runs on the same rows share the counts, which makes their difference
paired.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreword.tasks.corpus_metrics import Summed, mean_of

Array = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95
BINS = 15


@dataclass(frozen=True)
class Measure:
    """Describe a metric as `reduce(sum over rows of features, rows)`; its values lie in [low, high]."""

    name: str
    features: Callable[[Array, NDArray[np.int64]], Array]
    reduce: Callable[[Array, int], Array]
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Interval:
    """Hold a mean over seeds with its 95% interval; with one seed the interval covers the choice of test rows only."""

    mean: float
    low: float
    high: float
    seeds: int
    rows: int

    @property
    def shown(self) -> bool:
        """Return whether the interval of a difference excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def measured(self) -> bool:
        """Return whether there is a value: a metric of texts may not be defined for every script."""
        return not np.isnan(self.mean)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Hold one run's metric on its test rows, and on `DRAWS` resamples of them."""

    point: float
    draws_D: Array
    rows: int
    low: float = 0.0
    high: float = 1.0


def _right(logprob_RC: Array, label_R: NDArray[np.int64]) -> Array:
    return (logprob_RC.argmax(axis=1) == label_R).astype(np.float64)[:, None]


def _surprise(logprob_RC: Array, label_R: NDArray[np.int64]) -> Array:
    return -logprob_RC[np.arange(len(label_R)), label_R][:, None]


def _mean(sums_DF: Array, rows: int) -> Array:
    return sums_DF[:, 0] / rows


def _confusion(logprob_RC: Array, label_R: NDArray[np.int64]) -> Array:
    """Return indicators for each row and class: predicted and true, predicted, true."""
    classes = np.arange(logprob_RC.shape[1])
    predicted_RC = logprob_RC.argmax(axis=1)[:, None] == classes
    true_RC = label_R[:, None] == classes
    return np.concatenate([predicted_RC & true_RC, predicted_RC, true_RC], axis=1).astype(np.float64)


def _macro_f1(sums_DF: Array, rows: int) -> Array:
    """Return the mean F1 of the classes that occur, as label or as prediction."""
    both_DC, predicted_DC, true_DC = np.split(sums_DF, 3, axis=1)
    size_DC = predicted_DC + true_DC
    f1_DC = np.divide(2 * both_DC, size_DC, out=np.zeros_like(size_DC), where=size_DC > 0)
    return f1_DC.sum(axis=1) / (size_DC > 0).sum(axis=1)


def _gaps(logprob_RC: Array, label_R: NDArray[np.int64]) -> Array:
    """Return confidence minus correctness of each row, in the column of its bin: (0, 1/15], (1/15, 2/15], ..."""
    confidence_R = np.exp(logprob_RC.max(axis=1))
    bin_R = np.clip(np.ceil(confidence_R * BINS).astype(int) - 1, 0, BINS - 1)
    gap_R = confidence_R - _right(logprob_RC, label_R)[:, 0]
    return gap_R[:, None] * (bin_R[:, None] == np.arange(BINS))


def _ece(sums_DF: Array, rows: int) -> Array:
    """Return the expected calibration error (Guo et al. 2017, eq. 3)."""
    return np.abs(sums_DF).sum(axis=1) / rows


MEASURES = {
    m.name: m
    for m in (
        Measure("accuracy", _right, _mean),
        Measure("macro_f1", _confusion, _macro_f1),
        Measure("nll", _surprise, _mean, high=np.inf),
        Measure("ece", _gaps, _ece),
    )
}


def resample_all(
    names: Sequence[str], logprob_RC: Array, label_R: NDArray[np.int64], seed: int = 0
) -> dict[str, Resampled]:
    """Compute metrics by name on resamples of the rows; equal `seed` and number of rows give equal resamples."""
    kinds, rows = [MEASURES[name] for name in names], len(label_R)
    features = [kind.features(logprob_RC, label_R) for kind in kinds]
    sums_DX = _sums(np.concatenate(features, axis=1), seed)
    ends = np.cumsum([f.shape[1] for f in features])[:-1]
    results = {}
    for kind, sums_DF in zip(kinds, np.split(sums_DX, ends, axis=1), strict=True):
        value_D = kind.reduce(sums_DF, rows)
        results[kind.name] = Resampled(float(value_D[0]), value_D[1:], rows, kind.low, kind.high)
    return results


def resample_summed(metrics: Mapping[str, Summed], seed: int = 0) -> dict[str, Resampled]:
    """Compute metrics of texts, corpus metrics included, on the same resamples as label scores of as many rows.

    A row is a source with all its references. No text is read again: a resample weights the rows' features.
    """
    if not metrics:
        return {}
    [rows] = {one.features_RF.shape[0] for one in metrics.values()}
    values: dict[str, list[Array]] = {name: [] for name in metrics}
    for count_DR in _counts(rows, seed):
        for name, one in metrics.items():
            values[name].append(one.reduce(count_DR @ one.features_RF, rows))
    return {
        name: Resampled(one.value(), np.concatenate(values[name]), rows, one.low, one.high)
        for name, one in metrics.items()
    }


def resample_values(values: Mapping[str, Array], seed: int = 0) -> dict[str, Resampled]:
    """Compute the means of values for each row, between 0 and 1, on resamples of the rows."""
    return resample_summed({name: mean_of(value_R) for name, value_R in values.items()}, seed)


def _sums(all_RF: Array, seed: int) -> Array:
    """Return the sums over the original rows, then over each resample."""
    parts = [all_RF.sum(axis=0, keepdims=True)]
    return np.concatenate([*parts, *(count_DR @ all_RF for count_DR in _counts(len(all_RF), seed))])


def _counts(rows: int, seed: int) -> Iterator[Array]:
    """Yield how often each row is in each resample, in blocks: all resamples of 100,000 rows would take 1.6 GB."""
    rng = np.random.default_rng([seed, rows])
    for start in range(0, DRAWS, 200):
        pick_DR = rng.integers(rows, size=(min(200, DRAWS - start), rows))
        yield np.stack([np.bincount(pick_R, minlength=rows) for pick_R in pick_DR]).astype(np.float64)


def resample(name: str, logprob_RC: Array, label_R: NDArray[np.int64], seed: int = 0) -> Resampled:
    """Compute one metric of `resample_all`."""
    return resample_all([name], logprob_RC, label_R, seed)[name]


def interval(runs: Sequence[Resampled], seed: int = 0) -> Interval:
    """Return the mean over the runs of several seeds on the same rows, with its interval.

    Rows are resampled for all seeds at once, since all were tested on the same rows. The spread between seeds is added
    as Student's t with S-1 degrees of freedom times its standard error: resampling three seeds instead would give an
    interval far too narrow. Draws are recentred on the point, because resampling biases calibration error upwards. The
    result is NaN if a run's metric could not be measured.
    """
    points = np.array([r.point for r in runs])
    if np.isnan(points).any():
        return Interval(np.nan, np.nan, np.nan, len(runs), runs[0].rows)
    low, high = _bounds(points, np.mean([r.draws_D for r in runs], axis=0), seed)
    rows = runs[0].rows
    if runs[0].high == 1.0 and points.min() == points.max() and np.ptp([r.draws_D for r in runs]) == 0:
        room = 1 - (0.5 - LEVEL / 2) ** (1 / rows)  # no row differs, so nothing to resample: the exact binomial bound
        low, high = (1 - room, 1.0) if points[0] == 1 else (0.0, room) if points[0] == 0 else (low, high)
    return Interval(float(points.mean()), max(low, runs[0].low), min(high, runs[0].high), len(runs), rows)


def difference(runs: Sequence[Resampled], base: Sequence[Resampled], seed: int = 0) -> Interval:
    """Return the mean of `runs` minus `base`, paired by row and by seed: `runs[i]` and `base[i]` share both splits."""
    pairs = list(zip(runs, base, strict=True))
    points = np.array([a.point - b.point for a, b in pairs])
    if np.isnan(points).any():
        return Interval(np.nan, np.nan, np.nan, len(pairs), runs[0].rows)
    low, high = _bounds(points, np.mean([a.draws_D - b.draws_D for a, b in pairs], axis=0), seed)
    return Interval(float(points.mean()), low, high, len(pairs), runs[0].rows)


def _bounds(points: Array, draws_D: Array, seed: int) -> tuple[float, float]:
    draws_D = draws_D - draws_D.mean() + points.mean()
    if len(points) > 1:
        error = points.std(ddof=1) / np.sqrt(len(points))
        draws_D = draws_D + error * np.random.default_rng([seed, 0, len(points)]).standard_t(
            len(points) - 1, len(draws_D)
        )
    low, high = np.quantile(draws_D, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)
