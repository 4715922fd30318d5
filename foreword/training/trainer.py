"""Turn jobs into artefacts: direct methods run one by one, and learners through the loop, in stacks if they mix."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.core.artefact import Artefact, made_of
from foreword.core.format import Format
from foreword.core.locks import held
from foreword.core.values import Learnt, text_start
from foreword.errors import DataError, ForewordError
from foreword.inference.batched import stacked_scores
from foreword.inference.calibration import HardConfig, calibrate
from foreword.inference.metrics import measure, measured
from foreword.inference.scoring import score_rows
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat import thinking
from foreword.models.encoding.encoder import count_cut
from foreword.tasks.formats import longer_targets
from foreword.training.answer_log import AnswerLog
from foreword.training.checkpoint import Checkpoint
from foreword.training.contract import DirectMethod, GradientMethod, Job, Progress, SearchState
from foreword.training.examples import Rows, mean_nll
from foreword.training.joint_step import rebuilt, tensors_of
from foreword.training.loop import Run, fit


@dataclass(frozen=True, eq=False)
class Trained:
    """An artefact and what it took; times stay outside of the artefact, whose bytes must not depend on a clock."""

    artefact: Artefact
    seconds: float
    examples_per_second: float


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C while training: `trained` holds what there was (None where a job had no step yet)."""

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

    Learners of methods whose `mixed_batch` is true train as one stack. `checkpoint` names a file written every so often
    through a temporary one; with `resume`, training goes on from it and ends in the same numbers as without a stop.
    `on_done` hears of every job as soon as it has ended.

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
    made = method.make(lm, job, state)
    value, form, score = made.value, made.format, None
    notes = dict(made.metrics)
    if isinstance(job.config, HardConfig):
        calibrated = calibrate(lm, job.task, job.config, job.format, value, form, job.encoded_rows)
        value, form, score = calibrated.value, calibrated.format, calibrated.development
        notes |= calibrated.notes
    seconds = time.perf_counter() - began
    artefact = make_artefact(lm, job, value, form, made.parameters)
    artefact = dataclasses.replace(artefact, trace=dict(made.trace)).with_metrics(**notes)
    held = job.task.validation
    if any(row.label is not None or row.targets for row in held):
        artefact = artefact.with_metrics(validation=measure(lm, artefact, job.task, held, score, job.encoded_rows))
    return Trained(artefact, seconds, len(job.task.train) / seconds if made.parameters and seconds else 0.0)


def _part(checkpoint: Path | None, name: str, parts: int) -> Path | None:
    """The file of one of several parts."""
    return checkpoint.with_name(f"{checkpoint.name}.{name}") if checkpoint and parts > 1 else checkpoint


def _relayed(progress: Progress | None, job: int) -> Progress | None:
    """Progress of one job of several."""
    return (lambda step: progress(dataclasses.replace(step, job=job))) if progress else None


def _start(lm: FrozenLM, job: Job) -> Run:
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
    extra = text_start(learner.saved(learner.leaves))
    texts = job.task.answers == "text"
    rows = [Rows.of(learner.lm or lm, learner.format, part, extra, texts, job.encoded_rows) for part in parts]
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
    value = run.learner.saved({k: v.detach() for k, v in run.final_leaves().items()})
    value = rebuilt(value, {k: t.detach() for k, t in tensors_of(value).items()})
    numbers = sum(leaf.numel() for leaf in run.learner.leaves.values())
    artefact = make_artefact(lm, job, value, run.learner.format, numbers)
    kept = run.best_step if run.learner.config.keep == "best" and run.best else run.step
    artefact = artefact.with_metrics(steps=run.step, kept_step=kept)
    if run.learner.own is not None:
        artefact = _told(artefact, run)
    cut_rows, cut_tokens = count_cut([*run.train.encoded, *run.dev.encoded])
    if cut_rows:
        artefact = artefact.with_metrics(cut_rows=cut_rows, cut_tokens=cut_tokens)
    if len(run.dev):
        artefact = artefact.with_metrics(validation=_on_validation(lm, artefact, job, run.dev))
    return Trained(artefact, run.seconds, run.examples / run.seconds if run.seconds else 0.0)


def _on_validation(lm: FrozenLM, artefact: Artefact, job: Job, dev: Rows) -> dict[str, Any]:
    """Return the metrics of the validation rows; if answers are texts, those of the generated ones, and the loss of all
    references per token."""
    rows = job.task.validation
    if not dev.of_N:
        [score_NC] = score_rows(lm, [(artefact, rows)], encoded_rows=job.encoded_rows)
        return measured(score_NC, dev.label_N)
    [score_X1] = stacked_scores(lm, [artefact.value], [dev.encoded])
    return measure(lm, artefact, job.task, rows) | {"nll": round(mean_nll(dev, score_X1), 6)}


def _told(artefact: Artefact, run: Run) -> Artefact:
    """What a learner with steps of its own adds to the record: its recipe, its curve, and what was reached."""
    own, leaves = run.learner.own, run.final_leaves()
    assert own is not None, "asked of such learners alone"
    artefact = dataclasses.replace(artefact, recipe={**artefact.recipe, **own.record(leaves)})
    kept = next((value for step, value in reversed(run.curve) if step == artefact.metrics["kept_step"]), None)
    curve = [[step, round(value, 6)] for step, value in run.curve]
    return artefact.with_metrics(
        **({} if kept is None else {"episodes": {"accuracy": round(kept, 6)}}), **({"curve": curve} if curve else {})
    )


def make_artefact(lm: FrozenLM, job: Job, value: Learnt, form: Format, numbers: int) -> Artefact:
    """The artefact of a job, with everything needed to check it and to make it again.

    Where it writes, it says what the checkpoint asks of decoding and is not obeyed (`FrozenLM.set_aside`), and how many
    training and validation rows have targets that are longer than an answer may be.
    """
    method = job.method
    config = dataclasses.asdict(job.config)
    thinks = thinking(lm.tokenizer, form, lm.name) if method.uses_lm else None
    made = Artefact(
        value=value,
        format=form,
        method=job.method.name,
        config=config,
        seed=job.seed,
        model={"name": lm.name, "kind": lm.kind},
        fingerprint=dataclasses.asdict(lm.fingerprint()) if method.uses_lm else {},
        fields=tuple(job.task.fields),
        metrics={} if thinks is None else {"thinking": thinks},
        hashes=job.task.hashes(),
        recipe={
            "method": job.method.name,
            "options": config,
            "seed": job.seed,
            "task": job.task.name,
            "format": job.format.to_json(),
            "data": job.task.origin,
        },
        parent=None if job.init is None else job.init.sha256,
        numbers_trained=numbers,
    )
    if form.decoding is None:
        return made
    rows = (*job.task.train, *job.task.validation)
    longer = longer_targets(lm, form, rows) if form.decoding.extract is None and job.task.metric else 0
    told: dict[str, Any] = {"set_aside": dict(lm.set_aside)} if lm.set_aside else {}
    if longer:
        told["longer_targets"] = {"rows": longer, "of": len(rows), "max_new_tokens": form.decoding.max_new_tokens}
    return made.with_metrics(**told) if told else made


def is_of(artefact: Artefact, lm: FrozenLM, job: Job) -> bool:
    """Whether the artefact is what this job makes over this model: the same recipe, rows and weights."""
    return artefact.made_of == _made_of(job) and artefact.fingerprint in ({}, dataclasses.asdict(lm.fingerprint()))


def _made_of(job: Job) -> str:
    """What `Artefact.made_of` says of the job's artefact."""
    return made_of(job.method.name, dataclasses.asdict(job.config), job.seed, job.task.hashes(), job.format.to_json())


def recipe_hash(lm: FrozenLM, jobs: Sequence[Job]) -> str:
    """A hash of what the jobs are and of the model: resuming something else is refused."""
    text = json.dumps(
        [
            dataclasses.asdict(lm.fingerprint()),
            [_made_of(job) for job in jobs],
        ],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()
