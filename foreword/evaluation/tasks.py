"""Train a prompt for each of many tasks in one job, in mixed batches over one frozen model, and measure each prompt.

The folder is that of a comparison, with the artefact of task NAME in `artefacts/NAME`. A task whose rows, recipe and
model are unchanged is not trained again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from foreword.core.arguments import checked
from foreword.core.files import write_whole
from foreword.core.format import Format
from foreword.errors import ForewordError
from foreword.evaluation.compare import Backend, Stage
from foreword.evaluation.planned_runs import make_cells, make_desk
from foreword.evaluation.records import Record, Store, writing
from foreword.evaluation.schedule import FailedRun, Schedule, run_method
from foreword.evaluation.statistics import Interval, difference, interval
from foreword.methods.registry import find_method, make_job
from foreword.models.base import FrozenLM
from foreword.tasks.task import Task
from foreword.tasks.text_metric import recorded
from foreword.training.contract import Job, Progress
from foreword.training.options import configure

STACK = 64
LONGEST = 200  # bytes of a name; file systems take 255, and what is being written has a longer one
TABLE = "tasks.jsonl"
Verdict = Literal["better", "no difference shown", "worse", "failed"]


@dataclass(frozen=True)
class TaskLine:
    """Describe the result of one task: test accuracy of the hand-written and the learnt prompt, and their difference.

    For answers in text, the task's `metric` takes the place of accuracy. `verdict` is about the difference from the
    hand-written prompt; `reason` says why a task failed. `trained` is false if an unchanged task was already finished.
    `before` is the result of the old artefact if this one was made again, and `change` the difference of the new one.
    """

    name: str
    verdict: Verdict
    train_rows: int = 0
    test_rows: int = 0
    manual: Interval | None = None
    learnt: Interval | None = None
    difference: Interval | None = None
    before: Interval | None = None
    change: Interval | None = None
    reason: str | None = None
    trained: bool = False
    metric: str = "accuracy"


@dataclass(frozen=True, eq=False)
class TaskReport:
    """Hold a line for every task in the order given, the records of learnt prompts by name, the store, and notes."""

    lines: tuple[TaskLine, ...]
    records: Mapping[str, Record]
    store: Store
    notes: tuple[str, ...] = ()

    def count(self, verdict: Verdict) -> int:
        return sum(line.verdict == verdict for line in self.lines)


@checked
def train_tasks(
    lm: FrozenLM,
    tasks: Mapping[str, Task | ForewordError],
    method: str,
    *,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    shots: int | None = None,
    form: Callable[[FrozenLM, Task], Format] | None = None,
    stack: int = STACK,
    progress: Progress | None = None,
    on_stage: Callable[[Stage], None] | None = None,
) -> TaskReport:
    """Train one artefact for each task and measure it beside the task's hand-written prompt on its test rows.

    At most `stack` tasks train as one batch. A task that cannot be read may be given as its error; it and every other
    that fails is a line of the report and stops no other. The same call resumes a killed one and gives the same bytes.

    Raises: ConfigError for an unknown method or option, before anything is trained.
    """
    configure(find_method(method), options or {})
    jobs: dict[str, Job | ForewordError] = {}
    for name, task in tasks.items():
        try:
            if isinstance(task, ForewordError):
                raise task
            drawn = task if shots is None else task.few_shot(shots, seed)
            jobs[name] = make_job(
                lm, drawn, method, options=options, seed=seed, form=None if form is None else form(lm, drawn)
            )
        except ForewordError as error:
            jobs[name] = error
    return train_jobs(lm, jobs, out=out, stack=stack, progress=progress, on_stage=on_stage)


def train_jobs(
    lm: FrozenLM,
    jobs: Mapping[str, Job | ForewordError],
    *,
    out: str | Path,
    stack: int = STACK,
    progress: Progress | None = None,
    on_stage: Callable[[Stage], None] | None = None,
) -> TaskReport:
    """Do what `train_tasks` does for jobs by name, which may differ in method, options and seed."""
    store, tools = Store.open(out), Backend.own()
    desk = make_desk(lm, store, tools.own_cache, allowed=1, test=True, keep_bytes=None)
    reasons = {name: why for name, job in jobs.items() if (why := _unfit(name, job))}
    sound = {name: job for name, job in jobs.items() if isinstance(job, Job) and name not in reasons}
    learnt = {name: make_cells(desk, [job], job.task.shots, name)[0] for name, job in sound.items()}
    # Words alone are read once for equal rows, whatever their tasks are called, and kept as a record without artefact.
    words = {name: make_cells(desk, [_manual(lm, job)], job.task.shots)[0] for name, job in sound.items()}
    groups = [("manual", replace(desk, keep_bytes=-1), list({cell.id: cell for cell in words.values()}.values()))]
    for method in dict.fromkeys(job.method.name for job in sound.values()):
        groups.append((method, desk, [cell for cell in learnt.values() if cell.job.method.name == method]))
    results = {(r.role, r.id): r for r in store.records()}
    before, done, total = dict(results), 0, sum(len(cells) for _, _, cells in groups)
    for method, own, cells in groups:

        def tell(runs: int, name: str = method) -> None:
            nonlocal done
            done += runs
            if on_stage:
                on_stage(Stage(lm.name, f"{len(sound)} tasks", name, done, total))

        failures: list[FailedRun] = []
        plan = Schedule(own, tools.methods[method], tools.train_many, stack, progress, tell, results, failures)
        run_method(plan, {number: [cell] for number, cell in enumerate(cells)})
        for failure in failures:
            # Words of equal rows are one run, whose record names one of the tasks.
            runs = {words[name].id for name, job in sound.items() if job.task.name == failure.task}
            failed = [failure.name] if failure.name else [name for name, cell in words.items() if cell.id in runs]
            reasons |= {name: failure.reason for name in failed if name not in reasons}
    lines = []
    for name in jobs:
        if name in reasons:
            lines.append(TaskLine(name, "failed", reason=reasons[name]))
            continue
        key = "result", learnt[name].id
        line = _line(name, store, results["result", words[name].id], results[key])
        lines.append(replace(line, trained=results[key] is not before.get(key)))
    write_table(store, lines)
    records = {name: results["result", cell.id] for name, cell in learnt.items() if name not in reasons}
    return TaskReport(tuple(lines), records, store)


def _unfit(name: str, job: Job | ForewordError) -> str | None:
    """Return why a job cannot be started; None if it can."""
    if isinstance(job, ForewordError):
        return str(job)
    if name.startswith(".") or set(name) & set("/\\\0") or not 0 < len(name.encode()) <= LONGEST:
        return (
            f"{name!r} cannot be the name of an artefact's folder; give the task another, of {LONGEST} bytes at most."
        )
    if not job.task.test:
        return f"Task {name!r} has no test rows to measure on; give it some."
    return None


def _manual(lm: FrozenLM, job: Job) -> Job:
    """Return the job of the hand-written prompt of the same rows, whose template is the job's own without slots."""
    form = replace(job.format, template=job.format.template.without_soft()) if job.format.template.slots else job.format
    return make_job(lm, job.task, "manual", form=form)


def _line(name: str, store: Store, words: Record, learnt: Record) -> TaskLine:
    runs = []
    for record in (words, learnt):
        kept = store.predictions(record)
        assert kept is not None, "predictions are written before their record"
        runs.append(kept.resampled([record.primary])[record.primary])
    apart = difference([runs[1]], [runs[0]])
    verdict: Verdict = "no difference shown" if not apart.shown else "better" if apart.mean > 0 else "worse"
    rows = learnt.rows
    return TaskLine(
        name,
        verdict,
        rows["train"],
        rows["test"],
        interval([runs[0]]),
        interval([runs[1]]),
        apart,
        metric=learnt.primary,
    )


def as_record(line: TaskLine) -> dict[str, Any]:
    """Return a line as JSON values: accuracies and differences as fractions."""
    told: dict[str, Any] = {"task": line.name, "verdict": line.verdict}
    if line.reason:
        return told | {"reason": line.reason}
    told |= {"train_rows": line.train_rows, "test_rows": line.test_rows}
    for key in ("manual", "learnt", "difference", "before", "change"):
        value: Interval | None = getattr(line, key)
        if value is not None:
            told[key] = recorded({line.metric: value.mean, "low": value.low, "high": value.high})
    return told


def write_table(store: Store, lines: Sequence[TaskLine]) -> None:
    """Write the table to the store's folder, one JSON line for each task."""
    with writing(store.folder / TABLE):
        write_whole(store.folder / TABLE, "".join(json.dumps(as_record(line)) + "\n" for line in lines).encode())
