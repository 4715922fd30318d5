"""Jobs to artefacts: direct methods one by one, learners through the loop, all that can be mixed in one stack."""

import contextlib
import dataclasses
import functools
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
from foreword.core.values import Learnt
from foreword.errors import DataError, ForewordError
from foreword.inference.batched import stacked_scores
from foreword.inference.calibration import HardConfig, calibrate
from foreword.inference.metrics import measure, measured
from foreword.inference.scoring import score_rows
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat import thinking
from foreword.models.encoding.encoder import count_cut
from foreword.tasks.formats import longer_targets
from foreword.tasks.task import Task
from foreword.training.answer_log import Ledger
from foreword.training.checkpoint import Checkpoint
from foreword.training.contract import (
    DirectMethod,
    Ended,
    GradientMethod,
    Job,
    Progress,
    SearchMethod,
    StepwiseMethod,
)
from foreword.training.examples import Rows, mean_nll
from foreword.training.loop import Run, fit
from foreword.training.search_checkpoint import FileNotebook


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
        if on_done:
            on_done(index, outcome)

    stacked: list[int] = []
    single: list[int] = []
    for index, job in enumerate(jobs):
        method = job.method
        try:
            method.require(lm.kind, job.task)  # before any work, that of hashing the weights included
        except ForewordError as error:
            done(index, error)
            continue
        if isinstance(method, DirectMethod):
            try:
                done(index, _learn_directly(lm, job, functools.partial(method.learn, lm, job)))
            except ForewordError as error:
                done(index, error)
        elif isinstance(method, SearchMethod):
            try:
                ledger = Ledger.open(_part(checkpoint, f"search-{index}", len(jobs)), recipe_hash(lm, [job]), resume)
                learn = functools.partial(method.search, lm, job, ledger, _relayed(progress, index))
                done(index, _learn_directly(lm, job, learn))
                ledger.remove()
            except ForewordError as error:
                done(index, error)
            except KeyboardInterrupt:
                raise TrainingInterrupted([o if isinstance(o, Trained) else None for o in outcomes]) from None
        elif isinstance(method, StepwiseMethod):
            own = _part(checkpoint, f"search-{index}", len(jobs))
            try:
                notebook = FileNotebook(own, recipe_hash(lm, [job]), resume, job, index, progress)
                done(index, _learn_directly(lm, job, functools.partial(method.search, lm, job, notebook)))
                notebook.remove()
            except ForewordError as error:
                done(index, error)
            except KeyboardInterrupt:
                raise TrainingInterrupted([o if isinstance(o, Trained) else None for o in outcomes]) from None
        else:
            (stacked if method.mixed_batch else single).append(index)
    groups = ([stacked] if stacked else []) + [[index] for index in single]
    for number, group in enumerate(groups):
        try:
            file = _part(checkpoint, str(number), len(groups))
            _train_group(lm, [jobs[i] for i in group], [*group], done, progress, file, resume)
        except TrainingInterrupted as stop:
            partial = dict(zip(group, stop.trained, strict=True))
            kept = [o if isinstance(o, Trained) else partial.get(i) for i, o in enumerate(outcomes)]
            raise TrainingInterrupted(kept) from None
    return [outcome for outcome in outcomes if outcome is not None]


def _learn_directly(lm: FrozenLM, job: Job, learn: Callable[[], tuple[Any, ...] | Ended]) -> Trained:
    """Run what gives a value, its format, the numbers trained, and perhaps what else the record tells."""
    began = time.perf_counter()
    made = learn()
    trace = made.trace if isinstance(made, Ended) else {}
    value, form, numbers, *notes = made.parts if isinstance(made, Ended) else made
    score = None
    if isinstance(job.config, HardConfig):
        found = calibrate(lm, job.task, job.config, job.format, value, form)
        value, form, score = found.value, found.format, found.development
        notes.append(found.notes)
    seconds = time.perf_counter() - began
    artefact = dataclasses.replace(make_artefact(lm, job, value, form, numbers), trace=trace)
    for told in notes:
        artefact = artefact.with_metrics(**told)
    held = job.task.validation
    if any(row.label is not None or row.targets for row in held):
        artefact = artefact.with_metrics(validation=measure(lm, artefact, job.task, held, score))
    return Trained(artefact, seconds, len(job.task.train) / seconds if numbers and seconds else 0.0)


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
    extra = learner.saved(learner.leaves).text_start
    texts = job.task.answers == "text"
    rows = [Rows.of(learner.lm or lm, learner.format, part, extra, texts) for part in parts]
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
    value = value.with_tensors({name: tensor.detach() for name, tensor in value.tensors().items()})
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
        artefact = artefact.with_metrics(validation=_on_development(lm, artefact, job.task, run.dev))
    return Trained(artefact, run.seconds, run.examples / run.seconds if run.seconds else 0.0)


def _on_development(lm: FrozenLM, artefact: Artefact, task: Task, dev: Rows) -> dict[str, Any]:
    """The metrics of the development rows; where answers are texts, those of what is written, and the loss of all
    references per piece."""
    if not dev.of_N:
        return measured(score_rows(lm, [(artefact, task.validation)])[0], dev.label_N)
    [score_X1] = stacked_scores(lm, [artefact.value], [dev.encoded])
    return measure(lm, artefact, task, task.validation) | {"nll": round(mean_nll(dev, score_X1), 6)}


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
