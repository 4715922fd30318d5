"""The README's table on real data: nine methods, the embedded model both ways, four tasks, few shots and many rows.

Expect prefix-tuning >= prompt-tuning >= manual on many rows, and prefix-tuning near fine-tuning (docs/results.md).

    python recipes/real_data.py --data ../shared/data        every cell that is missing, then the tables
    python recipes/real_data.py --list                       the cells: kind/task/setting/method
    python recipes/real_data.py --readme README.md           and put the accuracy tables into README.md
    python recipes/real_data.py --only 'masked/sst2/*' --only '*/16/lora'
    python recipes/real_data.py --tune --only '*/16/prompt-tuning' -o learning_rate=0.1,0.3 --seeds 2

Stop it at any time; the same command goes on. `--full` takes whole data sets instead of 2,000 and 1,000 rows.
"""

import argparse
import fnmatch
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ending import ended
from markers import put

from foreword.cli.progress import Bars
from foreword.evaluation.compare import CompareOptions, FailedRun, compare
from foreword.evaluation.grid import parse_options
from foreword.evaluation.records import Record, Store
from foreword.evaluation.report import markdown, matrix
from foreword.evaluation.summary import summarise
from foreword.methods import METHODS
from foreword.models.load import load
from foreword.tasks.read import read_task
from foreword.tasks.task import Task
from foreword.training.options import configure

# Options by cell (kind/task/setting/method): every pattern that matches is applied, the later over the earlier.
# Chosen on development rows with --tune.
SCHEDULE: dict[str, dict[str, Any]] = {
    "*/prompt-tuning": {"length": 10, "learning_rate": 0.01, "batch_size": 16},
    "*/p-tuning": {"length": 10, "learning_rate": 1e-3, "batch_size": 16},
    "*/prefix-tuning": {"length": 10, "learning_rate": 0.02, "batch_size": 16},
    "*/lora": {"learning_rate": 3e-3, "batch_size": 16, "warmup": 10},
    "*/fine-tuning": {"learning_rate": 1e-4, "batch_size": 16, "warmup": 10},
    "*/autoprompt": {"steps": 20, "candidates": 24},
    "*/16/*-tuning": {"steps": 60, "eval_every": 20},
    "*/16/lora": {"steps": 60, "eval_every": 20},
    "*/16/fine-tuning": {"steps": 40, "eval_every": 20},
    "*/full/*-tuning": {"steps": 200, "eval_every": 50},
    "*/full/lora": {"steps": 150, "eval_every": 50},
    "*/full/fine-tuning": {"steps": 120, "eval_every": 40},
}

MODELS = {"masked": "foreword-mini", "causal": "foreword-mini-causal"}
TASKS = ("sst2", "trec", "ag_news", "sick")
SETTINGS = {"16": 5, "full": 3}  # with how many seeds
ORDER = (
    "manual", "bag-of-words", "linear-probe", "autoprompt", "prompt-tuning", "p-tuning", "prefix-tuning", "lora",
    "fine-tuning",
)  # fmt: skip
ROWS = {"train": 2000, "validation": 200, "test": 1000}


@dataclass(frozen=True)
class Cell:
    """One compare() of one method; its runs share a folder with all the others'."""

    kind: str
    task: str
    setting: str
    method: str

    @property
    def path(self) -> str:
        return f"{self.kind}/{self.task}/{self.setting}/{self.method}"

    @property
    def shots(self) -> int | None:
        return None if self.setting == "full" else int(self.setting)

    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pattern, options in SCHEDULE.items():
            if fnmatch.fnmatch(self.path, pattern):
                found |= options
        return found


def cells(patterns: list[str]) -> list[Cell]:
    """The cells whose path fits one of the patterns, few-shot and frozen methods first within a task."""
    every = [Cell(k, t, s, m) for k in MODELS for s in SETTINGS for t in TASKS for m in ORDER]
    return [c for c in every if not patterns or any(fnmatch.fnmatch(c.path, p) for p in patterns)]


def load_task(folder: Path, name: str, full: bool) -> Task:
    """Test rows are the same in every cell of a task: shots are drawn from all training rows, tested on this test."""
    task = read_task(folder / name)
    return task if full else task.limit(train=None, validation=None, test=ROWS["test"])


def rows_of(task: Task, cell: Cell, full: bool) -> Task:
    if full or cell.shots is not None:
        return task
    return task.limit(train=ROWS["train"], validation=ROWS["validation"], test=None)


def run_cells(given: argparse.Namespace, chosen: list[Cell]) -> list[FailedRun]:
    """Run what is missing, cell by cell. Tuning stops at the development rows."""
    failures: list[FailedRun] = []
    models: dict[str, Any] = {}
    tasks = {name: load_task(given.data, name, given.full) for name in dict.fromkeys(c.task for c in chosen)}
    for number, cell in enumerate(chosen, 1):
        print(f"{number} of {len(chosen)}: {cell.path}", file=sys.stderr)
        lm = models.setdefault(cell.kind, None) or load(MODELS[cell.kind], dtype=given.dtype)
        models[cell.kind] = lm
        grid = parse_options(given.option, [METHODS[cell.method]])[cell.method] if given.tune else {}
        with Bars() as bars:
            found = compare(
                lm,
                rows_of(tasks[cell.task], cell, given.full),
                [cell.method],
                out=given.out,
                seeds=given.seeds or SETTINGS[cell.setting],
                shots=cell.shots,
                options={cell.method: {**cell.options(), **grid}},
                how=CompareOptions(test=not given.tune, keep_bytes=0),
                progress=bars,
                on_stage=bars.stage,
            )
        failures += found.failures
        if given.tune:
            print(tuning_table(cell, Store.open(given.out).records(), found.records))
    return failures


def tuning_table(cell: Cell, records: list[Record], results: tuple[Record, ...]) -> str:
    """Development accuracy and likelihood of every grid point, the mean over seeds."""
    hashes = {r.hashes["validation"] for r in results}
    points: dict[str, list[Record]] = {}
    for record in records:
        same = (record.kind, record.task, record.method) == (cell.kind, cell.task, cell.method)
        if same and record.hashes["validation"] in hashes and (record.role == "trial" or record.tried == 1):
            told = {
                k: v
                for k, v in record.config.items()
                if any(r.config[k] != v for r in records if r.method == record.method)
            }
            points.setdefault(str(told), []).append(record)
    lines = []
    for point, some in points.items():
        accuracy = sum(r.development["accuracy"] for r in some) / len(some)
        nll = sum(r.development["nll"] for r in some) / len(some)
        lines.append(
            (accuracy, -nll, f"{cell.path}  dev {100 * accuracy:5.1f}  nll {nll:6.3f}  ({len(some)} seeds)  {point}")
        )
    return "\n".join(text for _, _, text in sorted(lines, reverse=True))


def current(records: list[Record], given: argparse.Namespace) -> list[Record]:
    """The results of the schedule as it stands, in the order of the table; those of other options are left out."""
    found = []
    for cell in cells([]):
        config = asdict(configure(METHODS[cell.method], cell.options()))
        seeds = range(given.seeds or SETTINGS[cell.setting])
        found += [
            r
            for r in records
            if (r.role, r.kind, r.task, r.k, r.method) == ("result", cell.kind, cell.task, cell.shots, cell.method)
            and r.config == config
            and r.seed in seeds
        ]
    return found


def brief(given: argparse.Namespace) -> str:
    """How the tables were made, and accuracy by method, task and setting."""
    store = Store.open(given.out)
    whole = "whole data sets" if given.full else f"{ROWS['train']:,} training and {ROWS['test']:,} test rows at most"
    machines = sorted({r.computed_on for r in store.records()})
    made = f"Made by `python recipes/real_data.py`: {whole}; options chosen on development rows. {'; '.join(machines)}."
    return f"{made}\n\n{matrix(summarise(current(store.records(), given), store.predictions)).strip()}"


def page(given: argparse.Namespace) -> str:
    """The accuracy tables, the schedule, then every cell with all its metrics."""
    store = Store.open(given.out)
    lines = summarise(current(store.records(), given), store.predictions)
    schedule = [f"- `{pattern}`: " + ", ".join(f"{k}={v}" for k, v in o.items()) for pattern, o in SCHEDULE.items()]
    parts = [
        brief(given),
        "Options by cell (kind/task/setting/method):\n\n" + "\n".join(schedule),
        "## All metrics",
    ]
    for question in dict.fromkeys(line.question for line in lines):
        parts.append(markdown([line for line in lines if line.question == question]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with sst2, trec, ...")
    parser.add_argument("--out", type=Path, help="the folder of results [runs/real-data]")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="cells, as kind/task/setting/method"
    )
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--table", action="store_true", help="run nothing; make the tables of what is there")
    parser.add_argument("--full", action="store_true", help="whole data sets")
    parser.add_argument("--tune", action="store_true", help="development rows only; prints every grid point")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="KEY=V1,V2", help="with --tune: a grid")
    parser.add_argument("--seeds", type=int, help="instead of 5 (16 shots) and 3 (full)")
    parser.add_argument("--dtype", default="bfloat16", help="of the model; learnt numbers are fp32 [bfloat16]")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--write", type=Path, default=Path("docs/results.md"), help="the page with the tables")
    parser.add_argument("--readme", type=Path, help="also put the accuracy tables between this page's markers")
    given = parser.parse_args(arguments)
    if given.option and not given.tune:
        parser.error("-o is for --tune; what the table uses stands in SCHEDULE.")
    kind = "tuning" if given.tune else "real-data"
    given.out = given.out or Path("runs") / (f"{kind}-full" if given.full else kind)
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    chosen = cells(given.only)
    if given.list or not chosen:
        print("\n".join(c.path for c in chosen or cells([])))
        return 0 if chosen else 2
    return ended(given.out, lambda: run(given, chosen), given.threads)


def run(given: argparse.Namespace, chosen: list[Cell]) -> list[FailedRun]:
    """What is missing, unless tables alone are asked for; then the tables, which are also printed."""
    failures = [] if given.table else run_cells(given, chosen)
    if not given.tune:
        text = page(given)
        put(given.write, "real_data", text, "Results")
        if given.readme:
            put(given.readme, "real_data", brief(given), "Results")
        print(text)
    return failures


if __name__ == "__main__":
    sys.exit(main())
