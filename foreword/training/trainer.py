"""Turn jobs into artefacts: direct methods run one by one, and learners through the loop, in stacks if they mix."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.core.artefact import Artefact
from foreword.core.locks import held
from foreword.errors import DataError, ForewordError
from foreword.inference.batched import stacked_scores
from foreword.inference.calibration import HardConfig, calibrate
from foreword.inference.metrics import measure, measured
from foreword.inference.scoring import score_rows
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import count_cut
from foreword.training.answer_log import AnswerLog
from foreword.training.checkpoint import Checkpoint
from foreword.training.contract import DirectMethod, GradientMethod, Job, Progress, SearchState
from foreword.training.examples import ExampleRows, mean_nll
from foreword.training.loop import Run, fit
from foreword.training.recipe import make_artefact, recipe_hash


@dataclass(frozen=True, eq=False)
class Trained:
    """Hold an artefact and how long it took. Times stay outside, since its bytes must not depend on a clock."""

    artefact: Artefact
    seconds: float
    examples_per_second: float


class TrainingInterrupted(KeyboardInterrupt):
    """Say that Ctrl-C stopped training; `trained` holds what there was, or None for a job without a step."""

    def __init__(self, trained: list["Trained | None"]):
        super().__init__("training was interrupted")
        self.trained = trained


Outcome = Trained | ForewordError
OnDone = Callable[[int, Outcome], None]


def train_many(
    lm: FrozenLM,
    jobs: Sequence[Job],
    *,
    progress: Progress | None = None,
    on_done: OnDone | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> list[Outcome]:
    """Train every job over one frozen model; a job that fails leaves its error in its place and stops no other.

    Learners of methods whose `mixed_batch` is true train as one stack. `checkpoint` names a file that is written every
    few steps. With `resume`, training continues from it and gives the same artefacts as without a stop. `on_done` is
    called with each job's outcome as soon as the job has ended.

    Raises: TrainingInterrupted on Ctrl-C, with what there is; ConfigError if another process has the checkpoint.
    """
    with contextlib.nullcontext() if checkpoint is None else held(checkpoint, "The checkpoint"):
        return _train_all(lm, jobs, progress, on_done, checkpoint, resume)


def _train_all(
    lm: FrozenLM,
    jobs: Sequence[Job],
    progress: Progress | None,
    on_done: OnDone | None,
    checkpoint: Path | None,
    resume: bool,
) -> list[Outcome]:
    outcomes: list[Outcome | None] = [None] * len(jobs)

    def done(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        jobs[index].encoded_rows.clear()
        if on_done:
            on_done(index, outcome)

    stacked: list[int] = []
    single: list[int] = []
    for index, job in enumerate(jobs):
        method = job.method
        try:
            method.require(lm.kind, job.task)  # before any work, that of hashing the weights included
            if isinstance(method, DirectMethod):
                file = _part(checkpoint, f"search-{index}", len(jobs)) if method.resumes else None
                recipe = recipe_hash(lm, [job]) if file else ""
                state = AnswerLog.open(file, recipe, resume, job=index, name=job.name, progress=progress)
                done(index, _finish_direct(lm, job, method, state))
                state.remove()
            else:
                (stacked if method.mixed_batch else single).append(index)
        except ForewordError as error:
            done(index, error)
        except KeyboardInterrupt:
            raise TrainingInterrupted(_trained(outcomes)) from None
    groups = ([stacked] if stacked else []) + [[index] for index in single]
    for number, group in enumerate(groups):
        try:
            file = _part(checkpoint, str(number), len(groups))
            _train_group(lm, [jobs[i] for i in group], group, done, progress, file, resume)
        except TrainingInterrupted as stop:
            partial = dict(zip(group, stop.trained, strict=True))
            raise TrainingInterrupted([o or partial.get(i) for i, o in enumerate(_trained(outcomes))]) from None
    return [outcome for outcome in outcomes if outcome is not None]


def _trained(outcomes: Sequence[Outcome | None]) -> list[Trained | None]:
    """Return the outcomes that are artefacts, each in its place."""
    return [outcome if isinstance(outcome, Trained) else None for outcome in outcomes]


def _finish_direct(lm: FrozenLM, job: Job, method: DirectMethod, state: SearchState) -> Trained:
    """Run a direct method, calibrate its scores if the config says so, and measure the validation rows."""
    began = time.perf_counter()
    result = method.make(lm, job, state)
    value, form, score = result.value, result.format, None
    notes = dict(result.metrics)
    if isinstance(job.config, HardConfig):
        calibrated = calibrate(lm, job.task, job.config, job.format, value, form, job.encoded_rows)
        value, form, score = calibrated.value, calibrated.format, calibrated.development
        notes |= calibrated.notes
    seconds = time.perf_counter() - began
    artefact = make_artefact(lm, job, value, form, result.parameters)
    artefact = dataclasses.replace(artefact, trace=dict(result.trace)).with_metrics(**notes)
    held = job.task.validation
    if any(row.label is not None or row.targets for row in held):
        artefact = artefact.with_metrics(validation=measure(lm, artefact, job.task, held, score, job.encoded_rows))
    return Trained(artefact, seconds, len(job.task.train) / seconds if result.parameters and seconds else 0.0)


def _part(checkpoint: Path | None, name: str, parts: int) -> Path | None:
    """Return the file of one of several parts."""
    return checkpoint.with_name(f"{checkpoint.name}.{name}") if checkpoint and parts > 1 else checkpoint


def _start(lm: FrozenLM, job: Job) -> Run:
    """Begin the run of a job whose method gives a learner."""
    method = job.method
    assert isinstance(method, GradientMethod), "direct methods never reach the loop"
    if not job.task.train:
        raise DataError(f"Task {job.task.name!r} has no training rows; {job.method.name} needs some.")
    learner = method.start(lm, job)
    lm.require_gradient()
    if learner.own is not None:
        # The rows of its task are read by the format alone, where they have the format's labels.
        parts = [(), job.task.validation if learner.format.labels else ()]
    else:
        parts = [job.task.train, job.task.validation]
    extra = learner.saved(learner.leaves).text_start
    texts = job.task.answers == "text"
    rows = [ExampleRows.of(learner.lm or lm, learner.format, part, extra, texts, job.encoded_rows) for part in parts]
    return Run(job.name, learner, rows[0], rows[1], job.seed)


def _train_group(
    lm: FrozenLM,
    jobs: Sequence[Job],
    indices: Sequence[int],
    done: OnDone,
    progress: Progress | None,
    file: Path | None,
    resume: bool,
) -> None:
    """Train the learners of one stack; a job whose learner cannot start is left out."""
    runs: list[Run] = []
    started: list[int] = []
    for position, job in enumerate(jobs):
        try:
            runs.append(_start(lm, job))
            started.append(position)
        except ForewordError as error:
            done(indices[position], error)
    if not runs:
        return
    saver = Checkpoint(file, recipe_hash(lm, [jobs[p] for p in started])) if file else None
    if saver and resume:
        saver.restore(runs)
    elif saver:
        saver.remove()  # an earlier job's
    relayed = (lambda s: progress(dataclasses.replace(s, job=indices[started[s.job]]))) if progress else None
    try:
        fit(lm, runs, progress=relayed, after_step=saver.every(runs) if saver else None)
    except KeyboardInterrupt:
        if saver and all(run.settled for run in runs):  # else the checkpoint before this step is the one to go on from
            saver.write(runs)
        partial: list[Trained | None] = [None] * len(jobs)
        for position, run in zip(started, runs, strict=True):
            if run.step:
                partial[position] = _finish(lm, jobs[position], run)
        raise TrainingInterrupted(partial) from None
    if saver and len(runs) > 1:
        saver.write(runs)  # a kill while many are measured and kept must not cost their last steps
    for position, run in zip(started, runs, strict=True):
        done(indices[position], run.error or _finish(lm, jobs[position], run))
    if saver:
        saver.remove()


def _finish(lm: FrozenLM, job: Job, run: Run) -> Trained:
    """Make the artefact of a run that has ended, or was stopped."""
    value = run.learner.saved({k: v.detach() for k, v in run.final_leaves().items()})
    value = value.with_tensors({name: tensor.detach() for name, tensor in value.tensors().items()})
    parameters = sum(leaf.numel() for leaf in run.learner.leaves.values())
    artefact = make_artefact(lm, job, value, run.learner.format, parameters)
    kept_step = run.best_step if run.learner.config.keep == "best" and run.best else run.step
    artefact = artefact.with_metrics(steps=run.step, kept_step=kept_step)
    if run.learner.own is not None:
        artefact = _with_own_record(artefact, run)
    cut_rows, cut_tokens = count_cut([*run.train.encoded, *run.dev.encoded])
    if cut_rows:
        artefact = artefact.with_metrics(cut_rows=cut_rows, cut_tokens=cut_tokens)
    if len(run.dev):
        artefact = artefact.with_metrics(validation=_on_validation(lm, artefact, job, run.dev))
    return Trained(artefact, run.seconds, run.examples / run.seconds if run.seconds else 0.0)


def _on_validation(lm: FrozenLM, artefact: Artefact, job: Job, dev: ExampleRows) -> dict[str, Any]:
    """Return the metrics of the validation rows.

    For answers in text, these are the metrics of the generated texts, and the loss of all references per token.
    """
    rows = job.task.validation
    if not dev.of_N:
        [score_NC] = score_rows(lm, [(artefact, rows)], encoded_rows=job.encoded_rows)
        return measured(score_NC, dev.label_N)
    [score_X1] = stacked_scores(lm, [artefact.value], [dev.encoded])
    return measure(lm, artefact, job.task, rows) | {"nll": round(mean_nll(dev, score_X1), 6)}


def _with_own_record(artefact: Artefact, run: Run) -> Artefact:
    """Add the recipe, the curve and the accuracy of a learner with steps of its own."""
    own, leaves = run.learner.own, run.final_leaves()
    assert own is not None, "asked of such learners alone"
    artefact = dataclasses.replace(artefact, recipe={**artefact.recipe, **own.record(leaves)})
    reached = next((value for step, value in reversed(run.curve) if step == artefact.metrics["kept_step"]), None)
    curve = [[step, round(value, 6)] for step, value in run.curve]
    return artefact.with_metrics(
        **({} if reached is None else {"episodes": {"accuracy": round(reached, 6)}}),
        **({"curve": curve} if curve else {}),
    )
