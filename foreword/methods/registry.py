"""Find a method by name and train jobs with it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.core.format import Format
from foreword.errors import ConfigError, ForewordError
from foreword.methods import METHODS
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat_template import frozen
from foreword.tasks.task import Task
from foreword.training.contract import Job, Method, Progress
from foreword.training.options import configure
from foreword.training.trainer import Trained, train_many
from foreword.training.warm_start import with_init


def find_method(name: str) -> Method:
    """Return the method of this name. Raises: ConfigError."""
    if name not in METHODS:
        raise ConfigError(f"{name!r} is not a method; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def make_job(
    lm: FrozenLM,
    task: Task,
    method: str,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    form: Format | None = None,
    family: Sequence[Task] = (),
) -> Job:
    """Return a job with its options checked; by default, `form` is the task's own format for this kind of model.

    The option `init` may be an artefact, or the folder of one, for methods that start from one. If metaprompting learns
    from the episodes of several tasks, `family` holds them.

    Raises: ConfigError for an unknown method or option.
    """
    chosen = find_method(method)
    plain, start = with_init(chosen, options or {})
    config = configure(chosen, plain)
    if family and not chosen.episodes:
        raise ConfigError(f"{method} learns from one task; metaprompting learns from several.")
    form = form or (family[0] if family else task).format(lm.kind, chat=lm.instructed, lm=lm)
    return Job(
        task,
        fitting(chosen, frozen(lm.tokenizer, form, lm.name) if chosen.uses_lm else form),
        chosen,
        config,
        seed,
        f"{task.name}/{method}/seed {seed}",
        tuple(family),
        start,
    )


def fitting(method: Method, form: Format) -> Format:
    """Return the format, without its place for demonstrations if the method shows none."""
    return form if method.demonstrates else dataclasses.replace(form, template=form.template.without_demos())


def train(
    lm: FrozenLM,
    task: Task,
    method: str,
    *,
    seed: int = 0,
    form: Format | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Trained:
    """Train one artefact; the options are the method's own (`foreword methods` lists them).

    Raises: ConfigError, DataError, ModelError as the part that failed says.
    """
    job = make_job(lm, task, method, options=options, seed=seed, form=form)
    outcome = train_many(lm, [job], progress=progress, checkpoint=checkpoint, resume=resume)[0]
    if isinstance(outcome, ForewordError):
        raise outcome
    return outcome
