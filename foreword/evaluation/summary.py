"""Summarise records of runs as table rows: means over seeds with intervals, and differences from two baselines."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from foreword.core.template import Template
from foreword.evaluation.predictions import Found, primary
from foreword.evaluation.records import Record
from foreword.evaluation.statistics import Interval, Resampled, difference, interval

BASELINES = ("manual", "fine-tuning")
ReadPredictions = Callable[[Record], Found | None]


@dataclass(frozen=True)
class TableRow:
    """Describe one method on one model, task and number of training rows: a mean over its seeds.

    If training rows were drawn separately, the seeds ran on each of `subsets` subsets (0: they were not). `versus` maps
    a baseline to the difference from it of the task's main metric, on the same rows and seeds. `chosen` are grid points
    with the number of seeds that chose them. `metrics` is empty if no test rows were read. Seconds are of training, a
    share if runs trained together; examples per second are test rows scored. `shown` says how many demonstrations stand
    before a row, of how many requested, and `calibration` names the rule; they are empty without any. `templates` are
    the worst, median and best of the main metric over paraphrased templates, means over seeds. `case` says how texts
    were compared (`Judge.case`), and `tokenizers` how they were split into words if not by the libraries' own rules.
    `reasoned` holds means over seeds for texts generated before labels: the shares of rows without an answer and of
    texts that were cut. `longer` counts the training and validation rows whose targets are longer than an answer may
    be, with the number of all these rows and the most tokens of an answer. `fields` are the fields of a row that the
    template reads.
    """

    model: str
    kind: str
    model_numbers: int
    task: str
    synthetic: bool
    k: int | None
    train_rows: int
    test_rows: int
    method: str
    seeds: tuple[int, ...]
    subsets: int
    tried: int
    allowed: int
    chosen: tuple[tuple[str, int], ...]
    development: Mapping[str, float]
    metrics: Mapping[str, Interval]
    versus: Mapping[str, Interval]
    numbers_trained: int
    bytes_stored: int
    train_seconds: float | None
    examples_per_second: float | None
    shown: str = ""
    calibration: str = ""
    templates: tuple[float, float, float] | None = None
    case: str = "kept"
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    reasoned: Mapping[str, float] = field(default_factory=dict)
    longer: tuple[int, int, int] | None = None
    fields: tuple[str, ...] = ()
    question: tuple[Any, ...] = ()  # `Record.question`: lines are compared if it is equal

    @property
    def primary(self) -> str:
        """Return the task's main metric: accuracy, or the first metric of its texts."""
        return primary(self.metrics or self.development)


def summarise(records: Iterable[Record], read: ReadPredictions, baselines: Sequence[str] = BASELINES) -> list[TableRow]:
    """Return one line for each method, in the order in which questions and methods first appear.

    If a method and seed have several results, the last one counts. Runs are compared only on equal test rows.
    """
    questions: dict[tuple[Any, ...], dict[str, dict[tuple[int, int], Record]]] = {}
    for record in records:
        if record.role == "result":
            questions.setdefault(record.question, {}).setdefault(record.method, {})[record.draw] = record
    lines = []
    for methods in questions.values():
        draws = {name: _draws(seeds.values(), read) for name, seeds in methods.items()}
        for name, seeds in methods.items():
            versus = {b: _difference(draws[name], draws[b]) for b in baselines if b in methods and b != name}
            lines.append(_line([*seeds.values()], draws[name], {b: d for b, d in versus.items() if d is not None}))
    return lines


Draws = dict[tuple[int, int], dict[str, Resampled]]


def _draws(records: Iterable[Record], read: ReadPredictions) -> Draws:
    """Return the resampled metrics by seed, or by subset if rows were drawn separately."""
    results: Draws = {}
    for record in records:
        predictions = read(record)
        if predictions is not None and record.metrics:
            results[record.draw] = predictions.resampled([*record.metrics])
    by_subset: dict[int, list[dict[str, Resampled]]] = {}
    for (subset, _), one in results.items():
        by_subset.setdefault(subset, []).append(one)
    whole = {(subset, 0): _mean_of(some) for subset, some in by_subset.items() if subset >= 0}
    return {draw: one for draw, one in results.items() if draw[0] < 0} | whole


def _mean_of(runs: Sequence[Mapping[str, Resampled]]) -> dict[str, Resampled]:
    """Average the seeds of one subset to one run: the spread between them is not due to the choice of rows."""
    return {
        name: replace(
            one,
            point=float(np.mean([run[name].point for run in runs])),
            draws_D=np.mean([run[name].draws_D for run in runs], axis=0),
        )
        for name, one in runs[0].items()
    }


def _difference(mine: Draws, base: Draws) -> Interval | None:
    shared = sorted(mine.keys() & base.keys())
    if not shared:
        return None
    name = primary(mine[shared[0]])
    return difference([mine[s][name] for s in shared], [base[s][name] for s in shared])


def _line(records: Sequence[Record], draws: Draws, versus: Mapping[str, Interval]) -> TableRow:
    first = records[0]
    every = list(draws.values())
    names = [name for name in (every[0] if every else ()) if all(name in one for one in every)]
    return TableRow(
        question=first.question,
        model=first.model,
        kind=first.kind,
        model_numbers=first.model_numbers,
        task=first.task,
        synthetic=first.synthetic,
        k=first.k,
        train_rows=first.rows["train"],
        test_rows=first.rows["test"],
        method=first.method,
        seeds=tuple(dict.fromkeys(r.seed for r in records)),
        subsets=len({r.draw[0] for r in records} - {-1}),
        tried=max(r.tried for r in records),
        allowed=max(r.allowed for r in records),
        chosen=_chosen(records),
        development={
            n: math.nan if (mean := _mean([r.development.get(n) for r in records])) is None else mean
            for n in first.development
        },
        metrics={n: interval([d[n] for d in draws.values()]) for n in names},
        versus=versus,
        numbers_trained=max(r.numbers_trained for r in records),
        bytes_stored=max(r.bytes_stored for r in records),
        train_seconds=_mean([r.timing.train_seconds for r in records if r.timing]),
        examples_per_second=_mean([r.timing.examples_per_second for r in records if r.timing]),
        shown=_shown(records),
        calibration=_calibration(records),
        templates=_templates(records),
        case=str(first.details.get("case", "kept")),
        tokenizers=first.details.get("tokenizers", {}),
        reasoned=_reasoned(records),
        longer=_longer(records),
        fields=Template.parse(first.format["template"]).fields if first.format.get("template") else (),
    )


def _templates(records: Sequence[Record]) -> tuple[float, float, float] | None:
    told = [r.details["templates"] for r in records if r.details.get("templates")]
    if not told:
        return None
    worst, median, best = (float(np.mean([t[name] for t in told])) for name in ("worst", "median", "best"))
    return worst, median, best


def _reasoned(records: Sequence[Record]) -> dict[str, float]:
    told = [r.details["reasoned"] for r in records if r.details.get("reasoned")]
    return {name: float(np.mean([t[name] for t in told])) for name in told[0]} if told else {}


def _longer(records: Sequence[Record]) -> tuple[int, int, int] | None:
    told = [r.details["longer_targets"] for r in records if r.details.get("longer_targets")]
    return max(((t["rows"], t["of"], t["max_new_tokens"]) for t in told), default=None)


def _shown(records: Sequence[Record]) -> str:
    told = [r.details["demonstrations"] for r in records if "demonstrations" in r.details]
    if not told:
        return ""
    low, high = min(t["shown"] for t in told), max(t["shown"] for t in told)
    asked = max(t["asked"] for t in told)
    return f"{low:g} of {asked}" if low == high else f"{low:g} to {high:g} of {asked}"


def _calibration(records: Sequence[Record]) -> str:
    """Return the calibration rule; if seeds chose different ones, each rule with the number of seeds."""
    rules = Counter(r.details["calibration"]["rule"] for r in records if "calibration" in r.details)
    if len(rules) == 1:
        return next(iter(rules))
    return ", ".join(f"{rule} ({times})" for rule, times in rules.most_common())


def _chosen(records: Sequence[Record]) -> tuple[tuple[str, int], ...]:
    """Return the grid points that the seeds chose, the most frequent first."""
    told = Counter(", ".join(f"{key}={value}" for key, value in r.point.items()) for r in records if r.point)
    return tuple(told.most_common())


def _mean(values: Iterable[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None
