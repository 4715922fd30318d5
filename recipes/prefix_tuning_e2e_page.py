"""The page of recipes/prefix_tuning_e2e.py: what was run, what each run wrote, and the tables made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from foreword.evaluation.predictions import TextPredictions
from foreword.evaluation.records import Record, Store
from foreword.evaluation.report import points, scale, title, valued
from foreword.evaluation.statistics import Interval, Resampled, difference, interval
from foreword.tasks.task import Task

ORDER = ("manual", "embeddings", "prefix")  # discrete < embedding-only < prefix, as the paper has it
SHOWN = ("bleu", "nist", "rouge_l", "chrf", "slot_error", "distinct_2")
WRITERS = ("manual", "embeddings", "prefix", "fine-tuning")
CASES = {
    "kept": "as they are",
    "lower": "in lower case",
    "uncased": "as an uncased model writes them (lower case, no accents, punctuation apart)",
}


@dataclass(frozen=True)
class Cell:
    """One variant at one number of training rows, over subsets and seeds. `infix` puts the slots after the source."""

    table: str
    rows: int | None
    name: str
    method: str
    options: dict[str, Any]
    subsets: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0, 1)
    infix: bool = False

    @property
    def path(self) -> str:
        return f"{self.table}/{self.rows or 'all'}/{self.name}"


@dataclass(frozen=True, eq=False)
class Result:
    """What a cell found: its runs, with what each wrote, by subset and seed."""

    cell: Cell
    runs: dict[tuple[int, int], tuple[Record, TextPredictions]]
    draws: dict[tuple[int, int], dict[str, Resampled]]

    def value(self, name: str) -> Interval:
        return interval([draw[name] for draw in self.draws.values()])

    def minus(self, other: "Result", name: str = "bleu") -> Interval | None:
        """The difference on the same sources, paired by subset and seed; one run stands beside every seed."""
        shared = [key for key in self.draws if key in other.draws or len(other.draws) == 1]
        if not shared:
            return None
        base = [other.draws.get(key) or next(iter(other.draws.values())) for key in shared]
        return difference([self.draws[key][name] for key in shared], [draw[name] for draw in base])


def results(out: Path, chosen: Sequence[Cell]) -> dict[str, Result]:
    """What there is of the cells in the folder, by path."""
    found = {}
    for cell in chosen:
        runs = {}
        for subset in cell.subsets:
            place = out / cell.path / f"subset-{subset}"
            store = Store(place)
            for record in store.records() if place.is_dir() else ():
                texts = store.predictions(record) if record.role == "result" else None
                if isinstance(texts, TextPredictions) and fits(record, cell):
                    runs[subset, record.seed] = record, texts
        if runs:
            found[cell.path] = Result(cell, runs, {key: texts.resampled(SHOWN) for key, (_, texts) in runs.items()})
    return found


def fits(record: Record, cell: Cell) -> bool:
    """Whether a run is of the cell's options as they are now."""
    return all(record.config.get(key) == value for key, value in cell.options.items())


def table(some: dict[str, Result], names: Sequence[str] = SHOWN) -> str:
    head = ["", *map(title, names), "missing / repeated / made up", "numbers", "runs", "seconds"]
    body = [head, ["---"] * len(head)]
    for label, one in some.items():
        record = next(iter(one.runs.values()))[0]
        seconds = [r.timing.train_seconds for r, _ in one.runs.values() if r.timing]
        told = [valued(name, one.value(name)) if name in next(iter(one.draws.values())) else "" for name in names]
        spent = f"{sum(seconds) / len(seconds):,.0f}" if seconds else ""
        body.append([label, *told, kinds(one), f"{record.numbers_trained:,}", str(len(one.runs)), spent])
    return "\n".join("| " + " | ".join(row) + " |" for row in body)


def kinds(one: Result) -> str:
    """Slot errors of each kind, in percent of the attributes."""
    sums = sum(texts.summed["slot_error"].features_RF.sum(axis=0) for _, texts in one.runs.values())
    return " / ".join(f"{100 * part / sums[3]:.1f}" for part in sums[:3])


def order(main: dict[str, Result]) -> list[str]:
    """The paper's order, step by step, by paired differences alone."""
    told = []
    for low, high in pairwise(ORDER):
        one, other = main.get(high), main.get(low)
        gap = one.minus(other) if one and other else None
        if gap is not None:
            verdict = "shown" if gap.low > 0 else "the opposite is shown" if gap.high < 0 else "not shown"
            told.append(f"{low} < {high}: {verdict} ({points(gap)} points of BLEU).")
    for name in ("infix", "fine-tuning"):
        one, other = main.get("prefix"), main.get(name)
        gap = one.minus(other) if one and other else None
        if gap is not None:
            verdict = "" if gap.shown else ", not shown"
            told.append(f"prefix minus {name}: {points(gap)} points of BLEU{verdict}.")
    return told


def few(found: dict[str, Result], sizes: Sequence[int]) -> str:
    head = [
        "rows",
        "prefix BLEU",
        "fine-tuning BLEU",
        "difference",
        "prefix slot errors",
        "fine-tuning slot errors",
        "runs",
    ]
    body = [head, ["---"] * len(head)]
    for size in sizes:
        one, other = found.get(f"few/{size}/prefix"), found.get(f"few/{size}/fine-tuning")
        cells_of = [valued("bleu", r.value("bleu")) if r else "" for r in (one, other)]
        slots = [valued("slot_error", r.value("slot_error")) if r else "" for r in (one, other)]
        gap = one.minus(other) if one and other else None
        shown = "" if gap is None else points(gap) + ("" if gap.shown else " =")
        runs = str(len(one.runs)) if one else ""
        body.append([str(size), *cells_of, shown, *slots, runs])
    return "\n".join("| " + " | ".join(row) + " |" for row in body)


def examples(main: dict[str, Result], task: Task, count: int = 4) -> str:
    """Rows taken at even steps through the test rows, with what the first run of every variant wrote."""
    parts = []
    for number in range(0, len(task.test), max(1, len(task.test) // count)):
        row = task.test[number]
        lines = [f"> {next(iter(row.fields.values()))}", "", f"- a person: {row.targets[0]}"]
        for name in WRITERS:
            one = main.get(name)
            if one:
                answer = next(iter(one.runs.values()))[1].answers[number]
                lines.append(f"- {name}: {' '.join(answer.split()) if answer else '(nothing)'}")
        parts.append("\n".join(lines))
        if len(parts) == count:
            break
    return "\n\n".join(parts)


def page(found: dict[str, Result], wanted: Sequence[Cell], task: Task, about: str, command: str) -> str:
    """The page of what was found of the cells wanted; `about` says how the runs were made."""
    rows = next(c.path for c in wanted if c.table == "main").split("/")[1]
    main = by_name(found, "main")
    missing = [c.path for c in wanted if c.path not in found or len(found[c.path].runs) < len(c.subsets) * len(c.seeds)]
    told = (
        f"{task.name}: {len(task.test):,} test sources (sha256 {task.hashes()['test'][:12]}), {rows} training sources; "
        f"{about} Texts are compared {CASES[task.case]}, by sacrebleu, rouge-score and Foreword's NIST and slot rules: "
        "these numbers are not those of the published script. In brackets 95% intervals by bootstrap over "
        "sources, with the spread of runs (subsets times seeds, taken as so many draws); differences are paired, each "
        "at 95%, without correction for their number."
    )
    parts = ["# E2E: words, embeddings, prefix and fine-tuning", told]
    if missing:
        parts.append(f"Not run yet, or not with every seed: {', '.join(missing)}.")
    if main:
        parts += ["## All of the training rows drawn", table(main)]
    parts.append(people(task))
    parts += ["## Is discrete < embedding-only < prefix?", "\n".join(f"- {line}" for line in order(main))]
    if by_name(found, "few"):
        sizes = sorted({c.rows for c in wanted if c.table == "few" and c.rows})
        parts += ["## Few rows", few(found, sizes), "= marks a difference that is not shown."]
    parts += [*starts(found), *lengths(found), "## Examples", examples(main, task), f"Made by `{command}`."]
    return "\n\n".join(part for part in parts if part) + "\n"


def people(task: Task) -> str:
    """What people wrote by the same measures: the first text of each test source against its others."""
    several = [row for row in task.test if len(row.targets) > 1]
    others = [replace(row, targets=row.targets[1:]) for row in several]
    found = task.judge.metrics([row.targets[0] for row in several], others)
    told = ", ".join(f"{title(n)} {scale(n) * found[n]:.1f}" for n in ("bleu", "rouge_l", "slot_error") if n in found)
    return (
        f"Of slot errors less is better. The first text of each of {len(several):,} sources against the other texts, "
        f"of which it has one less than the methods: {told}."
    )


def by_name(found: dict[str, Result], name: str) -> dict[str, Result]:
    """The cells of one table, by variant."""
    return {one.cell.name: one for one in found.values() if one.cell.table == name}


def starts(found: dict[str, Result]) -> list[str]:
    others = by_name(found, "init")
    if not others:
        return []
    size = next(iter(others.values())).cell.rows
    words = found.get(f"few/{size}/prefix")
    if words is None:
        return [f"## What the prefix starts from ({size} rows)", table(others, ("bleu", "slot_error"))]
    gaps = []
    for name, one in others.items():
        gap = words.minus(one)
        if gap is not None:
            gaps.append(
                f"- words of the task minus {name}: {points(gap)} points of BLEU{'' if gap.shown else ', not shown'}."
            )
    both = table({"words of the task": words, **others}, ("bleu", "slot_error"))
    return [f"## What the prefix starts from ({size} rows)", both, "\n".join(gaps)]


def lengths(found: dict[str, Result]) -> list[str]:
    others, own = by_name(found, "length"), by_name(found, "main").get("prefix")
    if not others or own is None:
        return []
    every = {f"length {own.cell.options['length']} (main table)": own, **others}
    ordered = dict(sorted(every.items(), key=lambda item: int(item[0].split()[1])))
    return ["## Length", table(ordered, ("bleu", "slot_error"))]
