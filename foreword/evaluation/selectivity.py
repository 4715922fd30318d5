"""Measure a probe's selectivity: its accuracy on the task beyond that on labels that it can only memorise."""

import random
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from foreword.errors import DataError
from foreword.inference.scoring import score_rows
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.tasks.label_metrics import accuracy
from foreword.tasks.task import Task


@final
@dataclass(frozen=True)
class Selectivity:
    """Hold test accuracy on the task and on its control task; the difference is the selectivity."""

    task: float
    control: float

    @property
    def selectivity(self) -> float:
        return self.task - self.control


def control_task(task: Task, seed: int = 0) -> Task:
    """Return the task with the same rows and labels that depend on the text's first word alone.

    The label of each word is drawn as often as the task's own labels occur (Hewitt & Liang 2019, section 2.1; their
    word types are single tokens, ours begin a row). A method that learns these labels has memorised words; the
    representation need not contain anything about the task.

    Raises: DataError if rows bring their own options, or no training row has a label.
    """
    if not task.labels:
        raise DataError("A control task needs one set of labels for all rows; here each row has its own options.")
    labels = [row.label for row in task.train if row.label is not None]
    if not labels:
        raise DataError(f"{task.name} has no training row with a label, from which a control task draws its own.")

    def drawn(row: Any) -> int:
        text = row.fields[task.fields[0]].split()
        return random.Random(f"control {seed} {text[0].lower() if text else ''}").choice(labels)

    changes: dict[str, Any] = {
        split: tuple(replace(row, label=drawn(row)) for row in task.rows(split))
        for split in ("train", "validation", "test")
    }
    return task.with_(**changes, name=f"{task.name}-control", notes=(*task.notes, f"control labels, seed {seed}"))


def selectivity(
    lm: FrozenLM, task: Task, method: str = "linear-probe", *, seed: int = 0, **options: Any
) -> Selectivity:
    """Train the method on the task and on its control task with the same options, and read both test sets."""
    results = []
    for one in (task, control_task(task, seed)):
        artefact = train(lm, one, method, seed=seed, **options).artefact
        score_NC = score_rows(lm, [(artefact, one.test)])[0].double().cpu().numpy()
        results.append(float(accuracy(score_NC, np.array([row.label for row in one.test]))))
    return Selectivity(*results)
