"""Train one method from Python."""

from typing import Any

from foreword.core.arguments import checked
from foreword.core.format import Format
from foreword.inference.predictor import Prompted
from foreword.methods.registry import train as train_artefact
from foreword.models.base import FrozenLM
from foreword.tasks.task import Task
from foreword.training.contract import Progress


@checked
def train(
    lm: FrozenLM,
    task: Task,
    method: str = "prompt-tuning",
    *,
    seed: int = 0,
    form: Format | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Prompted:
    """Learn a prompt (or a baseline) and return it with its model; `options` are those of the method.

    `form` is the task's own template and label words unless given: `task.format(lm.kind, template=..., ...)`.

    Raises: ConfigError, DataError, ModelError as the part that failed says.
    """
    return Prompted(lm, train_artefact(lm, task, method, seed=seed, form=form, progress=progress, **options).artefact)
