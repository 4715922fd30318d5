"""Report arms on the same episodes: means over episodes and meta-training seeds with 95% intervals, and differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from foreword.errors import ConfigError
from foreword.evaluation.episode_comparison import EpisodeScores
from foreword.evaluation.statistics import DRAWS, Interval, Resampled, difference, interval
from foreword.tasks.episodes import EpisodeSource, Split

Over = Literal["episodes", "classes"]
REFERENCES = ("multitask", "vocabulary")
Verdict = Literal["shown better", "not shown", "shown worse"]


@dataclass(frozen=True)
class EpisodeLine:
    """Hold one arm's mean accuracy, and its differences from the adapted references on the same episodes."""

    arm: str
    how: str
    rates: tuple[float, ...]
    accuracy: Interval
    versus: Mapping[str, Interval]

    @property
    def name(self) -> str:
        return self.arm if self.how in ("adapted", self.arm) else f"{self.arm}, {self.how}"

    def verdict(self, reference: str) -> Verdict | None:
        """Return whether the difference from a reference is shown, and its sign; None without such a difference."""
        apart = self.versus.get(reference)
        if apart is None:
            return None
        return "not shown" if not apart.shown else "shown better" if apart.mean > 0 else "shown worse"


def over(source: EpisodeSource, split: Split) -> Over:
    """Return what intervals resample: classes or episodes.

    It is classes if an episode uses every row of its classes, so that episodes differ in their classes alone.
    """
    pools = [rows for some in source._pools[split] for rows in some.values()]
    return (
        "classes" if source.by_classes and all(len(p) <= source.shots + source.queries for p in pools) else "episodes"
    )


def resampled(measured: EpisodeScores, what: Over, seed: int = 0) -> Resampled:
    """Compute mean accuracy and its value on resamples; the same episodes give any arm the same resamples."""
    accuracy_E = measured.accuracy_E
    if what == "episodes":
        value_X, weight_X = accuracy_E, np.ones(len(accuracy_E))
    else:
        names = sorted({name for classes in measured.classes_EN for name in classes})
        value_X, weight_X = np.zeros(len(names)), np.zeros(len(names))
        for classes, rights, queries in zip(measured.classes_EN, measured.right_EN, measured.queries_E, strict=True):
            for name, right in zip(classes, rights, strict=True):
                value_X[names.index(name)] += right / queries
                weight_X[names.index(name)] += 1
        value_X = value_X / weight_X
    rng = np.random.default_rng([seed, len(value_X)])
    pick_DX = rng.integers(len(value_X), size=(DRAWS, len(value_X)))
    draws_D = (value_X * weight_X)[pick_DX].sum(1) / weight_X[pick_DX].sum(1)
    return Resampled(float(accuracy_E.mean()), draws_D, len(value_X))


def lines_of(found: Sequence[EpisodeScores], what: Over, references: Sequence[str] = REFERENCES) -> list[EpisodeLine]:
    """Return a line for each arm, with its starts as meta-training seeds.

    Differences pair seeds in the order of `found`, as many as both arms have.

    Raises: ConfigError if arms were measured on different episodes.
    """
    if len({m.hash for m in found}) > 1:
        raise ConfigError("The arms were measured on different episodes and cannot be compared; measure them again.")
    groups: dict[tuple[str, str], list[EpisodeScores]] = {}
    for measured in found:
        groups.setdefault((measured.arm, measured.how), []).append(measured)
    drawn = {key: [resampled(m, what) for m in some] for key, some in groups.items()}
    lines = []
    for key, some in groups.items():
        versus = {}
        for reference in references:
            base = drawn.get((reference, "adapted"))
            if base is None or key == (reference, "adapted"):
                continue
            versus[reference] = difference(*_pairs(drawn[key], base))
        rates = tuple(sorted({m.rate for m in some if m.rate is not None}))
        lines.append(EpisodeLine(*key, rates, interval(drawn[key]), versus))
    return lines


def _pairs(runs: list[Resampled], base: list[Resampled]) -> tuple[list[Resampled], list[Resampled]]:
    """Pair the runs seed by seed, as many as both arms have; a single run is paired with every seed of the other."""
    if len(runs) == 1:
        runs = runs * len(base)
    if len(base) == 1:
        base = base * len(runs)
    count = min(len(runs), len(base))
    return runs[:count], base[:count]


def markdown(lines: Sequence[EpisodeLine], what: Over, episodes: int) -> str:
    """Return the table as Markdown, with a sentence that says what its intervals cover."""
    references = [r for r in REFERENCES if any(r in line.versus for line in lines)]
    head = ["arm", "seeds", "rate", "accuracy", *[text for r in references for text in (f"- {r}", "")]]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        cells = [line.name, str(line.accuracy.seeds), ", ".join(f"{r:g}" for r in line.rates), percent(line.accuracy)]
        for r in references:
            cells += [points(line.versus[r]), str(line.verdict(r))] if r in line.versus else ["", ""]
        rows.append(cells)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{table}\n\nMean query accuracy over {episodes} episodes; 95% intervals over {_covered(lines, what)}."


def _covered(lines: Sequence[EpisodeLine], what: Over) -> str:
    seeds = {line.accuracy.seeds for line in lines}
    if seeds == {1}:
        return f"{what} alone, since one seed shows no spread"
    return f"{what} and seeds" + (f", over {what} alone where there is one seed" if 1 in seeds else "")


def as_record(line: EpisodeLine) -> dict[str, Any]:
    """Return a line as JSON values: accuracies and differences as fractions."""
    told = {"arm": line.arm, "how": line.how, "rates": list(line.rates), "seeds": line.accuracy.seeds}
    value = line.accuracy
    versus = {
        name: {"difference": d.mean, "low": d.low, "high": d.high, "verdict": line.verdict(name)}
        for name, d in line.versus.items()
    }
    return {**told, "accuracy": value.mean, "low": value.low, "high": value.high, "versus": versus}


def percent(value: Interval) -> str:
    return f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def points(value: Interval) -> str:
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
