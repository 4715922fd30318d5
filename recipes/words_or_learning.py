"""At how many labels does learning beat words? Demonstrations and calibration beside learnt prompts, the same labels.

Expect learning to be shown above words in some tasks at 16 labels a class, and demonstrations not to help this model.

    python recipes/words_or_learning.py --data ../shared/data     every cell that is missing, then page and picture
    python recipes/words_or_learning.py --list                    the cells: task/labels/variant
    python recipes/words_or_learning.py --only 'sst2/16/*'        some of them
    python recipes/words_or_learning.py --quick                   a tiny model and embedded rows: whether it works

Stop it at any time; the same command goes on.
"""

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ending import ended

from foreword.evaluation.compare import Backend, CompareOptions, FailedRun, compare
from foreword.evaluation.plots import plot_curves
from foreword.evaluation.predictions import ReadCache, Readers
from foreword.evaluation.records import Record, Store
from foreword.evaluation.report import percent, points
from foreword.evaluation.statistics import Interval
from foreword.evaluation.summary import TableRow, summarise
from foreword.models.load import load
from foreword.tasks.read import read_task
from foreword.tasks.rows import Row
from foreword.tasks.task import Task

RULES = ("none", "contextual", "pmi", "batch", "auto")
WORDS = {f"few-shot, {rule}": ("few-shot", {"calibrate": rule}) for rule in RULES}
SCHEDULE = {"batch_size": 8, "steps": 60, "eval_every": 20, "length": 10}
LEARNT: dict[str, tuple[str, dict[str, Any]]] = {
    "bag-of-words": ("bag-of-words", {}),
    "prompt-tuning": ("prompt-tuning", {**SCHEDULE, "learning_rate": 0.01}),
    "prefix-tuning": ("prefix-tuning", {**SCHEDULE, "learning_rate": 0.02}),
}
# Without a label nothing can be chosen or fitted; batch calibration takes rows whose labels it is not given.
ZERO = {f"manual, {rule}": ("manual", {"calibrate": rule}) for rule in RULES[:-1]}
TASKS = ("sst2", "trec", "ag_news", "sick", "rte")
SHOTS = (0, 16, 4, 32)  # in the order in which they are run
SEEDS = (0, 1, 2)
TEST_ROWS, UNLABELLED = 500, 200
ABOUT = """
At how many labels a class does learning beat words? Each cell is test accuracy in percent with a 95% interval
over the choice of test rows and, with labels, of {seeds} seeds, each of which draws its labels and as many
development rows. Everything in a column of one task has the same labels and is read on the same rows. `none`,
`contextual`, `pmi` and `batch` are calibrations; `auto` chooses one on the development rows. `manual` has no
label (batch: {texts} texts without theirs). Of the labels' rows as many are shown as demonstrations as fit
beside the longest row, in a context of 512 tokens.
"""
AGAINST = ("manual, none", "few-shot, auto")
DRAWN = ("manual, none", "manual, batch", "few-shot, none", "few-shot, auto", *LEARNT)


@dataclass(frozen=True)
class Cell:
    """One compare() of one method with one set of options, at one number of labels a class."""

    task: str
    shots: int
    name: str
    method: str
    options: dict[str, Any]

    @property
    def path(self) -> str:
        return f"{self.task}/{self.shots}/{self.name}"


def cells(given: argparse.Namespace) -> list[Cell]:
    """All cells, a number of labels after the other. Demonstrations of 32 labels a class fit nowhere in this model's
    context, so there only what learns is run."""
    found = []
    for shots in given.shots:
        variants = ZERO if not shots else {**(WORDS if shots < 32 else {}), **LEARNT}
        for task in given.tasks:
            found += [Cell(task, shots, name, method, options) for name, (method, options) in variants.items()]
    return [c for c in found if not given.only or any(fnmatch.fnmatch(c.path, p) for p in given.only)]


def read(given: argparse.Namespace, name: str) -> Task:
    """The task with the test rows that every cell shares."""
    source = name if name.startswith("builtin:") else str(given.data / name)
    return read_task(source).limit(train=None, validation=None, test=given.rows)


def without_labels(task: Task) -> Task:
    """No training rows, and development rows that say nothing but their text."""
    rows = [Row(r.fields, None, r.options, r.where) for r in (*task.validation, *task.train)]
    return task.with_(train=(), validation=tuple(rows[:UNLABELLED]))


def run(given: argparse.Namespace, chosen: Sequence[Cell]) -> list[FailedRun]:
    """Run what is missing, cell by cell. Rows read with the same words are read once for all calibrations."""
    lm = load(given.model, dtype=given.dtype)
    own = Backend.own()
    tools = replace(own, cache=ReadCache(Readers(own.score, own.answer)))
    tasks = {name: read(given, name) for name in dict.fromkeys(c.task for c in chosen)}
    failures: list[FailedRun] = []
    for number, cell in enumerate(chosen, 1):
        print(f"{number} of {len(chosen)}: {cell.path}", file=sys.stderr, flush=True)
        task = tasks[cell.task]
        options = dict(cell.options)
        if given.quick and "steps" in options:
            options |= {"steps": 2, "eval_every": 2, "length": 3}
        found = compare(
            lm,
            task if cell.shots else without_labels(task),
            [cell.method],
            out=given.out,
            seeds=given.seeds if cell.shots else [0],
            shots=cell.shots or None,
            options={cell.method: options},
            how=CompareOptions(keep_bytes=0),
            tools=tools,
        )
        failures += found.failures
    return failures


def variant(record: Record) -> str | None:
    """What a run is called on the page; None for one of another schedule."""
    for name, (method, options) in {**ZERO, **WORDS, **LEARNT}.items():
        same = all(record.config.get(key) == value for key, value in options.items() if key not in SCHEDULE)
        if record.method == method and same:
            return name
    return None


def curves(given: argparse.Namespace) -> list[TableRow]:
    """A line for every variant at every number of labels. What has no labels is beside all of them, on their seeds."""
    store = Store.open(given.out)
    runs = [r for r in store.records() if r.role == "result" and r.task in [t.split(":")[-1] for t in given.tasks]]
    named = [(r, name) for r in runs if (name := variant(r)) is not None]
    labelled = [replace(r, method=name) for r, name in named if r.k]
    places = {(r.task, r.k, r.rows["train"], r.seed): r for r in labelled}
    words = [(r, name) for r, name in named if not r.k]
    beside = [
        replace(w, method=name, k=k, seed=seed, rows=other.rows)
        for (task, k, _, seed), other in places.items()
        for w, name in words
        if w.task == task and w.hashes["test"] == other.hashes["test"]
    ]
    alone = [replace(w, method=name) for w, name in words]
    return summarise([*alone, *labelled, *beside], store.predictions, baselines=AGAINST)


def by_place(lines: Sequence[TableRow]) -> dict[tuple[str, int, str], TableRow]:
    return {(line.task, line.k or 0, line.method): line for line in lines if "accuracy" in line.metrics}


def table(lines: Sequence[TableRow], task: str) -> str:
    """Accuracy of one task: variants down, labels a class across; and how many demonstrations stood before a row."""
    found = by_place(lines)
    shots = sorted({k for t, k, _ in found if t == task})
    names = [n for n in [*ZERO, *WORDS, *LEARNT] if any((task, k, n) in found for k in shots)]
    body = [["", *(f"{k} labels" for k in shots), "demonstrations shown"], ["---"] * (len(shots) + 2)]
    for name in names:
        cells_of = [found.get((task, k, name)) if k or name in ZERO else None for k in shots]
        if name in ZERO:  # it is the same at every number of labels
            cells_of = [cells_of[0], *[None] * (len(shots) - 1)]
        shown = "; ".join(f"{k}: {line.shown}" for k, line in zip(shots, cells_of, strict=True) if line and line.shown)
        body.append([name, *("" if line is None else percent(line.metrics["accuracy"]) for line in cells_of), shown])
    return "\n".join("| " + " | ".join(row) + " |" for row in body)


def answers(lines: Sequence[TableRow], task: str) -> list[str]:
    """From how many labels on each learner is shown above words, said by the paired differences alone."""
    found = by_place(lines)
    told = []
    for base, what in zip(AGAINST, ("the hand-written words", "demonstrations, calibrated by choice"), strict=True):
        for name in LEARNT:
            gaps: dict[int, Interval] = {
                k: line.versus[base]
                for (t, k, n), line in found.items()
                if (t, n) == (task, name) and base in line.versus
            }
            above = sorted(k for k, gap in gaps.items() if gap.low > 0)
            below = sorted(k for k, gap in gaps.items() if gap.high < 0)
            listed = ", ".join(f"{k}: {points(gap)}" for k, gap in sorted(gaps.items()))
            verdict = f"shown above at {_and(above)} labels" if above else "nowhere shown above"
            worse = f", shown below at {_and(below)}" if below else ""
            if gaps:
                told.append(f"{name} against {what}: {verdict}{worse} ({listed} points).")
    return told


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def lacking(given: argparse.Namespace, lines: Sequence[TableRow]) -> list[str]:
    """A sentence on the cells that have not been run with every seed, by task and number of labels."""
    found = {place for place, line in by_place(lines).items() if not place[1] or len(line.seeds) == len(given.seeds)}
    missing = [c for c in cells(given) if (c.task.split(":")[-1], c.shots, c.name) not in found]
    if not missing:
        return []
    listed = ", ".join(dict.fromkeys(f"{c.task}/{c.shots}" for c in missing))
    return [f"Not run yet, or not with every seed: {len(missing)} of {len(cells(given))} cells, in {listed}."]


def page(given: argparse.Namespace, lines: Sequence[TableRow]) -> str:
    tasks = list(dict.fromkeys(line.task for line in lines))
    machines = sorted({r.computed_on for r in Store.open(given.out).records()})
    hashes = {r.task: r.hashes["test"][:12] for r in Store.open(given.out).records()}
    rows = {line.task: line.test_rows for line in lines}
    schedule = ", ".join(f"{key}={value}" for key, value in SCHEDULE.items())
    parts = [
        "# Words or learning",
        " ".join(ABOUT.format(seeds=len(given.seeds), texts=UNLABELLED).split()),
        f"![curves]({given.picture.name})",
    ]
    parts += lacking(given, lines)
    for task in tasks:
        listed = "\n".join(f"- {sentence}" for sentence in answers(lines, task))
        head = f"## {task} ({rows[task]:,} test rows, sha256 {hashes[task]})"
        parts.append(f"{head}\n\n{table(lines, task)}\n\n{listed}".strip())
    under = (
        "Differences are paired, each at 95%, without correction for their number.",
        f"Learners: {schedule}; prompt-tuning 0.01 and prefix-tuning 0.02 as learning rates.",
        f"Model {given.model}; {'; '.join(machines)}. Made by `python recipes/words_or_learning.py`.",
    )
    parts.append(" ".join(under))
    return "\n\n".join(parts) + "\n"


def draw(given: argparse.Namespace, lines: Sequence[TableRow]) -> None:
    panels: dict[str, dict[str, list[tuple[int, Interval]]]] = {}
    for (task, k, name), line in sorted(by_place(lines).items(), key=lambda item: item[0][1]):
        if name in DRAWN:
            panels.setdefault(task, {}).setdefault(name, []).append((k, line.metrics["accuracy"]))
    ordered = {task: {name: found[name] for name in DRAWN if name in found} for task, found in panels.items()}
    plot_curves(ordered, given.picture, across="labels a class", up="test accuracy, percent, with 95% intervals")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with sst2, trec, ...")
    parser.add_argument("--out", type=Path, help="the folder of results [runs/words]")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cells, as task/labels/variant")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--page", action="store_true", help="run nothing; make the page and picture of what is there")
    parser.add_argument("--quick", action="store_true", help="a tiny model, an embedded task, two steps")
    parser.add_argument("--model", default="foreword-mini-causal")
    parser.add_argument("--dtype", default="bfloat16", help="of the model; learnt numbers are fp32 [bfloat16]")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch [1]")
    parser.add_argument("--write", type=Path, default=Path("docs/words-or-learning.md"), help="the page")
    given = parser.parse_args(arguments)
    given.tasks, given.shots, given.seeds, given.rows = TASKS, SHOTS, SEEDS, TEST_ROWS
    if given.quick:
        given.tasks, given.shots, given.seeds, given.rows = ("builtin:sentiment",), (0, 2), (0, 1), 24
        given.model, given.dtype = "foreword-tiny-causal", "float32"
    given.out = given.out or Path("runs") / ("words-quick" if given.quick else "words")
    given.picture = given.write.with_suffix(".png")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    chosen = cells(given)
    if given.list or not chosen:
        print("\n".join(c.path for c in chosen) or f"no cell fits {', '.join(given.only)}")
        return 0 if chosen else 2
    return ended(given.out, lambda: run_all(given, chosen), given.threads)


def run_all(given: argparse.Namespace, chosen: list[Cell]) -> list[FailedRun]:
    """What is missing, unless the page alone is asked for; then the page."""
    failures = [] if given.page else run(given, chosen)
    lines = curves(given)
    draw(given, lines)
    given.write.write_text(page(given, lines), encoding="utf-8")
    print(f"{given.write} and {given.picture} are made of {len(lines)} lines")
    return failures


if __name__ == "__main__":
    sys.exit(main())
