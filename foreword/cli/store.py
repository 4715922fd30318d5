"""Train many tasks in one job, from the command line: read them, train them, and print the result of each."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreword.cli.console import note, print_json, table, this_command
from foreword.cli.progress import Bars
from foreword.cli.results import print_blocks, print_filled
from foreword.cli.shared_options import DataChoice, FormatChoice, ModelChoice
from foreword.errors import ConfigError, ForewordError

if TYPE_CHECKING:
    from foreword.evaluation.statistics import Interval
    from foreword.evaluation.tasks import TaskLine, TaskReport
    from foreword.tasks.task import Task


def store_tasks(
    method: str,
    model: str,
    tasks: str,
    out: Path,
    options: Mapping[str, str],
    *,
    seed: int,
    shots: int | None,
    stack: int | None,
    overwrite: bool,
    as_json: bool,
    which: DataChoice,
    how_put: FormatChoice,
    how: ModelChoice,
) -> None:
    """Run `foreword train METHOD --tasks DIR --out STORE`."""
    from foreword.evaluation.tasks import STACK, train_tasks

    if overwrite:
        raise ConfigError(
            "--overwrite is not for --tasks: tasks whose rows or recipe changed are replaced, the others are kept."
        )
    result = read_tasks(tasks, which)
    lm = how.load(model)
    reasons = "max_new_tokens" in options  # of a method that reasons before labels
    with resumable(out), Bars(many=True) as bars:
        report = train_tasks(
            lm, result, method, out=out, options=options, seed=seed, shots=shots,
            form=lambda lm, task: how_put.build(task, lm, reasons=reasons), stack=stack or STACK, progress=bars,
            on_stage=bars.stage,
        )  # fmt: skip
    tell(report, out, as_json)


def read_tasks(folder: str, which: DataChoice) -> "dict[str, Task | ForewordError]":
    """Read every task of the folder, by name; the value of a task that cannot be read is its error."""
    from foreword.tasks.read import find_tasks

    results: dict[str, Task | ForewordError] = {}
    for name, path in find_tasks(folder).items():
        try:
            results[name] = which.read(str(path), quiet=True)
        except ForewordError as error:
            results[name] = error
    bad = sum(isinstance(task, ForewordError) for task in results.values())
    for name, task in results.items():
        for line in () if isinstance(task, ForewordError) else task.guesses:
            note(f"{name}: {line}")
    note(f"{len(results)} tasks in {folder}" + (f", {bad} of which cannot be read" if bad else ""))
    return results


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Print, after Ctrl-C, where the finished tasks are and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"the tasks that ended are in {out}")
        note(f"go on with: {this_command('--resume')}")
        raise


def tell(report: "TaskReport", out: Path, as_json: bool) -> None:
    """Print the table, or JSON. Raises: ForewordError (exit code 2) if tasks failed; the others are kept."""
    if as_json:
        from foreword.evaluation.tasks import as_record

        print_json({"store": str(out), "tasks": [as_record(line) for line in report.lines]})
    else:
        print_lines(report.lines)
        for text in summary(report):
            print_filled(text)
        note(f"Artefacts, records and predictions: {out}")
    failed = report.count("failed")
    if failed:
        raise ForewordError(
            f"{failed} of {len(report.lines)} tasks failed, as the table says; the others are kept, and the same "
            "command tries these again."
        )


def print_lines(lines: "tuple[TaskLine, ...]") -> None:
    """Print one line for each task, those that failed last with their reason."""
    again = any(line.before for line in lines)
    headers = ["task", "train", "test", "manual", *(["before", "after", "after - before"] if again else ["learnt"])]
    headers += ["vs manual", "verdict"]
    rows = [
        [
            *(line.name, f"{line.train_rows:,}", f"{line.test_rows:,}", _told(line, line.manual)),
            *([_told(line, line.before)] if again else []),
            _told(line, line.learnt),
            *([_apart(line, line.change)] if again else []),
            *(_apart(line, line.difference), line.verdict),
        ]
        for line in lines
        if line.verdict != "failed"
    ]
    if rows:
        print_blocks(headers, rows)
    failed = [(line.name, line.reason or "") for line in lines if line.verdict == "failed"]
    if failed:
        table(["failed task", "why"], failed)
        click.echo()


def summary(report: "TaskReport") -> list[str]:
    """Return sentences that sum up the table."""
    total = len(report.lines) - report.count("failed")
    skipped = sum(not line.trained and line.verdict != "failed" for line in report.lines)
    counts = [f"{report.count(v)} {v}" for v in ("better", "no difference shown", "worse", "failed")]
    said = [f"Against the hand-written prompt, of {len(report.lines)} tasks: {', '.join(counts)}."]
    if skipped:
        said.append(f"{skipped} unchanged tasks were finished already and not trained again.")
    if total:
        said.append(
            "Test accuracy (or the task's own metric) in percent with 95% intervals over test rows, and paired "
            "differences in points; without "
            f"any true difference about {0.025 * total:.1f} of {total} tasks would be shown better by chance."
        )
    return said


def _told(line: "TaskLine", value: "Interval | None") -> str:
    from foreword.evaluation.report import valued

    return valued(line.metric, value)


def _apart(line: "TaskLine", value: "Interval | None") -> str:
    from foreword.evaluation.report import points

    return "" if value is None else points(value, line.metric)
