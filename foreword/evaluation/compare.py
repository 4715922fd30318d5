"""Compare methods on the same rows and seeds. Runs that the folder already holds are not run again.

A seed is one whole repetition: it draws the shots, trains every point of a method's grid, chooses one on that draw's
development rows, and only then reads the test rows. So the spread between seeds includes the choice. With `subsets`,
the shots are drawn separately: every method trains with every seed on each of the same subsets (Li & Liang 2021,
section 6.3), and the spread is that between subsets, each of which counts as the mean of its seeds.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.core.arguments import checked
from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.html import html_table
from foreword.errors import ConfigError, DataError
from foreword.evaluation.grid import Options, points
from foreword.evaluation.planned_runs import PlannedRun, RunContext, make_cells, make_desk
from foreword.evaluation.predictions import Answer, ReadCache, Readers, Score, primary
from foreword.evaluation.records import Record, Store
from foreword.evaluation.report import caption, notes, table
from foreword.evaluation.schedule import FailedRun, Schedule, run_method
from foreword.evaluation.sensitivity import over_templates
from foreword.evaluation.summary import TableRow, summarise
from foreword.inference.answers import answer_rows
from foreword.methods.registry import fitting
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat_template import frozen
from foreword.tasks.task import Task
from foreword.training.contract import Job, Method, Progress
from foreword.training.trainer import Outcome

Model = FrozenLM | str | Callable[[], FrozenLM]


@dataclass(frozen=True)
class Stage:
    """Describe the progress of a comparison: `done` of `total` runs, including those that were already finished."""

    model: str
    task: str
    method: str
    done: int
    total: int


@dataclass(frozen=True)
class CompareOptions:
    """Hold the options of a comparison that are rarely changed.

    A method may try `allowed` grid points (None: as many as the largest grid has). `test=False` stops at the
    development rows. Artefacts above `keep_bytes` are not kept (None: all are). At most `stack` runs train as one
    (None: no limit). `form` returns the format of a task for a model; by default it is the task's own format for the
    model's kind. With `sensitivity`, methods that are words are also measured in the task's ten paraphrased templates,
    on the same test rows.
    """

    allowed: int | None = None
    test: bool = True
    keep_bytes: int | None = 32 << 20
    stack: int | None = None
    form: Callable[[FrozenLM, Task], Format] | None = None
    sensitivity: bool = False


@dataclass(frozen=True)
class Backend:
    """Hold the methods and the functions that train them and read artefacts; comparisons may share one `cache`."""

    methods: Mapping[str, Method]
    train_many: Callable[..., list[Outcome]]
    score: Score
    answer: Answer = answer_rows
    cache: ReadCache | None = None

    @property
    def own_cache(self) -> ReadCache:
        return self.cache or ReadCache(Readers(self.score, self.answer))

    @staticmethod
    def own() -> "Backend":
        from foreword.inference.scoring import score_rows
        from foreword.methods import METHODS
        from foreword.training.trainer import train_many

        return Backend(METHODS, train_many, score_rows)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Hold the rows of the table, the records of the runs, the failed runs, and the comparison's folder."""

    lines: tuple[TableRow, ...]
    records: tuple[Record, ...]
    failures: tuple[FailedRun, ...]
    folder: Path

    def _repr_html_(self) -> str:
        """Return the comparison's table as HTML with its caption and notes, for notebooks."""
        header, rows = table(self.lines)
        below = "".join(f"<p>{html.escape(line)}</p>" for line in notes(self.lines))
        return html_table(header, rows, caption(self.lines)) + below


@checked
def compare(
    models: Model | Sequence[Model],
    task: Task,
    methods: Sequence[str],
    *,
    out: str | Path,
    seeds: int | Sequence[int] = 5,
    shots: int | None = None,
    subsets: int | None = None,
    options: Options | None = None,
    how: CompareOptions | None = None,
    progress: Progress | None = None,
    on_stage: Callable[[Stage], None] | None = None,
    tools: Backend | None = None,
) -> Comparison:
    """Train and test every method with every seed on every model; results are written to `out` run by run.

    `options` maps a method to its options; a list or tuple is a grid. `shots` rows for each label (for answers in text:
    rows; None: all) are drawn with each seed; if `subsets` is given, that many subsets are drawn instead, with seeds of
    their own. Errors of single runs are kept as failures and stop no other run.

    Raises: ConfigError or DataError for a request that cannot be met, before anything is trained.
    """
    how, tools, options = how or CompareOptions(), tools or Backend.own(), options or {}
    chosen = _methods(methods, tools, options)
    grids = {m.name: points(m, options.get(m.name, {}), how.allowed) for m in chosen}
    tasks = _drawn(task, _seeds(seeds), shots, subsets)
    for method in chosen:
        method.require_answers(task)
    _check_rows(task, tasks, grids, how)
    store = Store.open(out)
    givens = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    if not givens:
        raise ConfigError("There is no model to compare on; give one or more.")
    total = len(givens) * len(tasks) * sum(len(grid) for grid in grids.values())
    allowed = how.allowed or max(len(grid) for grid in grids.values())
    done, records, failures = 0, [], []
    for given in givens:
        lm = _loaded(given)
        desk = make_desk(lm, store, tools.own_cache, allowed=allowed, test=how.test, keep_bytes=how.keep_bytes)
        put = how.form or (lambda lm, t: t.format(lm.kind, chat=lm.instructed, lm=lm))
        results = {(r.role, r.id): r for r in store.records()}
        clock = _clock(lm, list(results.values()))
        forms = {draw: _dated(lm, put(lm, t), clock) for draw, t in tasks.items()}
        for method in chosen:

            def tell(runs: int, name: str = method.name, model: str = lm.name) -> None:
                nonlocal done
                done += runs
                if on_stage:
                    on_stage(Stage(model, task.name, name, done, total))

            own = replace(desk, templates=_templates(desk, tools, how, method))
            plan = Schedule(own, method, tools.train_many, how.stack, progress, tell, results, failures)
            cells: dict[tuple[int | None, int] | int, list[PlannedRun]] = {
                draw: make_cells(
                    desk, [_job(t, forms[draw], method, c, draw[1]) for c in grids[method.name]], shots, subset=draw[0]
                )
                for draw, t in tasks.items()
            }
            records += run_method(plan, cells)
    return Comparison(tuple(summarise(records, store.predictions)), tuple(records), tuple(failures), store.folder)


def _clock(lm: FrozenLM, records: Sequence[Record]) -> str | None:
    """Return the time that the chat template's clock shows in this model's earlier runs; None if there are none."""
    clocks = (r.format.get("chat_options", {}).get("clock") for r in records if r.model == lm.name)
    return next((clock for clock in clocks if clock), None)


def _dated(lm: FrozenLM, form: Format, clock: str | None) -> Format:
    """Return the format with this clock, or with the present time if `clock` is None.

    So a comparison that is resumed on another day keeps the clock that it began with.
    """
    if clock is not None and form.template.chat:
        return replace(form, chat_options=form.chat_options.at(clock))
    return frozen(lm.tokenizer, form, lm.name)


def _templates(
    desk: RunContext, tools: Backend, how: CompareOptions, method: Method
) -> Callable[[Job], dict[str, Any]] | None:
    """Return a function that measures a job in other templates; None if not requested, untested, or not in words."""
    if not (how.sensitivity and how.test and method.retemplates):
        return None

    def judged(artefact: Artefact, task: Task) -> float:
        metrics = desk.cache.read(desk.lm, artefact, task).found.metrics(closed=False)
        return metrics[primary(metrics)]

    return lambda job: over_templates(desk.lm, job, tools.train_many, judged)


def _job(task: Task, form: Format, method: Method, config: Any, seed: int) -> Job:
    return Job(task, fitting(method, form), method, config, seed, f"{task.name}/{method.name}/seed {seed}")


def _methods(names: Sequence[str], tools: Backend, options: Options) -> list[Method]:
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in tools.methods:
            raise ConfigError(f"{name!r} is not a method; choose one of {', '.join(tools.methods)}.")
    if not names:
        raise ConfigError(f"There is nothing to compare; name one or more of {', '.join(tools.methods)}.")
    for name in options:
        if name not in names:
            raise ConfigError(
                f"Options were given for {name!r}, which is not compared; compared are {', '.join(names)}."
            )
    return [tools.methods[name] for name in names]


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(dict.fromkeys(seeds))
    if not found:
        raise ConfigError(f"seeds={seeds!r} names no seed; give a number above 0, or the seeds themselves.")
    return found


def _drawn(
    task: Task, seeds: Sequence[int], shots: int | None, subsets: int | None
) -> dict[tuple[int | None, int], Task]:
    """Return the task of each repetition by the number of its subset (None: drawn with the seed) and its seed."""
    if subsets is None:
        return {(None, seed): task if shots is None else task.few_shot(shots, seed) for seed in seeds}
    if shots is None or subsets < 1:
        raise ConfigError(
            f"subsets={subsets} asks for draws of training rows, and shots={shots} for how many rows each has; give "
            "both, 1 or more."
        )
    parts = {subset: task.few_shot(shots, subset) for subset in range(subsets)}
    return {(subset, seed): part for subset, part in parts.items() for seed in seeds}


def _check_rows(task: Task, tasks: Mapping[Any, Task], grids: Mapping[str, Sequence[Any]], how: CompareOptions) -> None:
    if how.test and not task.test:
        raise DataError(
            f"Task {task.name!r} has no test rows to compare on; give some, or stop at the development rows."
        )
    chooses = not how.test or any(len(grid) > 1 for grid in grids.values())
    if chooses and not all(t.validation for t in tasks.values()):
        raise DataError(f"Task {task.name!r} has no development rows to choose on; give validation rows, or no grid.")


def _loaded(given: Model) -> FrozenLM:
    if isinstance(given, FrozenLM):
        return given
    if isinstance(given, str):
        from foreword.models.load import load

        return load(given)
    return given()
