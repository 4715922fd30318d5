"""Turn what a job made into an artefact with its recipe, and compare recipes."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from foreword.core.artefact import Artefact, made_of
from foreword.core.format import Format
from foreword.core.values import Learnt
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat import thinking
from foreword.tasks.formats import longer_targets
from foreword.training.contract import Job


def make_artefact(lm: FrozenLM, job: Job, value: Learnt, form: Format, parameters: int) -> Artefact:
    """Return the artefact of a job, with everything needed to check it and to make it again.

    If it generates text, its metrics say which wishes of the checkpoint for decoding are not obeyed
    (`FrozenLM.set_aside`), and how many training and validation rows have targets longer than an answer may be.
    """
    method = job.method
    config = dataclasses.asdict(job.config)
    thinks = thinking(lm.tokenizer, form, lm.name) if method.uses_lm else None
    artefact = Artefact(
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
        numbers_trained=parameters,
    )
    if form.decoding is None:
        return artefact
    rows = (*job.task.train, *job.task.validation)
    longer = longer_targets(lm, form, rows) if form.decoding.extract is None and job.task.metric else 0
    notes: dict[str, Any] = {"set_aside": dict(lm.set_aside)} if lm.set_aside else {}
    if longer:
        notes["longer_targets"] = {"rows": longer, "of": len(rows), "max_new_tokens": form.decoding.max_new_tokens}
    return artefact.with_metrics(**notes)


def is_of(artefact: Artefact, lm: FrozenLM, job: Job) -> bool:
    """Return whether this job makes this artefact over this model: the same recipe, rows and weights."""
    return artefact.made_of == _made_of(job) and artefact.fingerprint in ({}, dataclasses.asdict(lm.fingerprint()))


def _made_of(job: Job) -> str:
    """Return `Artefact.made_of` of the job's artefact."""
    return made_of(job.method.name, dataclasses.asdict(job.config), job.seed, job.task.hashes(), job.format.to_json())


def recipe_hash(lm: FrozenLM, jobs: Sequence[Job]) -> str:
    """Return a hash of the jobs and the model, so that resuming something else is refused."""
    text = json.dumps(
        [
            dataclasses.asdict(lm.fingerprint()),
            [_made_of(job) for job in jobs],
        ],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()
