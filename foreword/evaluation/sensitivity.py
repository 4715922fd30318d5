"""Measure how much a method depends on the template: the same rows in ten other templates, on the same test rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from foreword.core.artefact import Artefact
from foreword.core.template import AnswerPlace, Template
from foreword.errors import ForewordError
from foreword.models.base import FrozenLM
from foreword.tasks.paraphrases import paraphrases
from foreword.tasks.task import Task
from foreword.training.contract import Job
from foreword.training.trainer import Outcome, Trained

Judged = Callable[[Artefact, Task], float]  # by the metric that the task is judged by


def over_templates(lm: FrozenLM, job: Job, train_many: Callable[..., list[Outcome]], judged: Judged) -> dict[str, Any]:
    """Return the worst, median and best test accuracy (for texts: the task's metric) over paraphrased templates.

    Demonstrations and calibration are made anew for each template, with the job's seed. Templates that this model
    cannot use are left out, and `tried` counts those that were read; without any, the result is empty. The cost is one
    evaluation for each template.
    """
    results = []
    for source in paraphrases(job.task.name, job.task.fields):
        try:
            template = _like(job.format.template, Template.parse(source), lm.kind)
            form = replace(job.format, template=template, soft_first=False)
            (outcome,) = train_many(lm, [replace(job, format=form)])
            if isinstance(outcome, Trained):
                results.append(round(judged(outcome.artefact, job.task), 6))
        except ForewordError:
            continue
    if not results:
        return {}
    worst, median, best = min(results), float(np.median(results)), max(results)
    return {"tried": len(results), "worst": worst, "median": round(median, 6), "best": best, "accuracies": results}


def _like(own: Template, other: Template, kind: str) -> Template:
    """Return the other template in the form of the job's: for this kind of model, or as a chat message."""
    if not own.chat:
        return other.for_kind(kind)
    at = next(i for i, part in enumerate(other.parts) if isinstance(part, AnswerPlace))
    asked = Template((replace(other.turns[0], parts=other.parts[:at]),)).source
    assert isinstance(asked, str), "a plain template has a plain source"
    return Template.parse([{"role": "user", "content": asked.rstrip()}])
