"""Show progress on stderr: a bar for each learner on a terminal, a line now and then elsewhere."""

import time
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from foreword.cli.console import err, note, seconds

if TYPE_CHECKING:
    from foreword.evaluation.compare import Stage
    from foreword.training.contract import Step

EVERY_SECONDS = 15.0
WHOLE = ("all runs", -1)


class Bars:
    """Show every `Step` of training, and every `Stage` of a comparison; a context manager to be called with each step.

    With `many` learners one bar stands for the stack that is being trained, with the loss of the last step reported.
    """

    def __init__(self, many: bool = False) -> None:
        console = err()
        self._many = many
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=3)),
            BarColumn(bar_width=None, table_column=Column(ratio=2)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            disable=not self._live,
        )
        self._bars: dict[tuple[str, int], TaskID] = {}
        self._metric: dict[tuple[str, int], float] = {}
        self._method = ""
        self._said = time.monotonic()

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, step: "Step") -> None:
        if self._many:
            step = replace(step, name="this stack", metric=None)
        key = (step.name, step.job)
        if step.metric is not None:
            self._metric[key] = step.metric
        metric = f" dev {self._metric[key]:.3f}" if key in self._metric else ""
        left = f"{seconds(step.seconds_left)} left"
        told = f"loss {step.loss:.3f}{metric} {step.examples_per_second:.0f}/s {left}"
        if self._live:
            self._move(key, step.step, step.steps, told)
            if step.step >= step.steps and not self._many:
                self._progress.remove_task(self._bars.pop(key))
        elif time.monotonic() - self._said > EVERY_SECONDS:
            self._said = time.monotonic()
            note(f"{step.name}: step {step.step} of {step.steps}, {told}")

    def stage(self, stage: "Stage") -> None:
        """Show how many runs of a comparison are done, and which method is running."""
        method = f"{stage.model}, {stage.method}"
        if method != self._method:  # bars of learners that stopped early are still there
            for bar in self._bars.values():
                self._progress.remove_task(bar)
            self._bars.clear()
            self._metric.clear()
        if self._live:
            self._move(WHOLE, stage.done, stage.total, method)
        elif method != self._method:
            note(f"{method} on {stage.task}: {stage.done} of {stage.total} runs done")
        self._method = method

    def _move(self, key: tuple[str, int], done: int, total: int, told: str) -> None:
        if key not in self._bars:
            _, _, short = key[0].partition("/")  # the task is the same for all
            self._bars[key] = self._progress.add_task((short or key[0]).replace("/", ", "), total=total, told="")
        self._progress.update(self._bars[key], completed=done, told=told)
