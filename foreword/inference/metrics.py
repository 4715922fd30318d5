"""Measure an artefact on labelled rows: the metrics that go into its record."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from foreword.core.artefact import Artefact
from foreword.errors import DataError
from foreword.inference.answers import answer_rows, text_metrics
from foreword.inference.features import EncodedRows
from foreword.inference.scoring import score_rows
from foreword.models.base import FrozenLM
from foreword.tasks.label_metrics import accuracy, macro_f1, nll
from foreword.tasks.rows import Row, label_of
from foreword.tasks.task import Task
from foreword.tasks.text_metric import recorded


def measure(
    lm: FrozenLM,
    artefact: Artefact,
    task: Task,
    rows: Sequence[Row],
    score: Any | None = None,
    encoded_rows: EncodedRows | None = None,
) -> dict[str, Any]:
    """Return the metrics of an artefact on a task's rows, from its label scores or the texts it generates.

    `score` are the label scores (rows, labels), if they were read already.

    Raises: DataError for a row without a label or a target.
    """
    if not task.metric:
        labels = [label_of(row) for row in rows]
        if score is None:
            [score] = score_rows(lm, [(artefact, rows)], encoded_rows=encoded_rows)
        return measured(score, labels)
    require_targets(rows)
    found = text_metrics(task, answer_rows(lm, [(artefact, rows)])[0], rows)
    return {"rows": len(rows), **recorded({name: round(value, 6) for name, value in found.items()})}


def require_targets(rows: Sequence[Row]) -> None:
    """Check that every row has accepted answers. Raises: DataError for a row without."""
    for row in rows:
        if not row.targets:
            raise DataError(f"{row.where or 'A row'} has no accepted answer; measuring needs one in every row.")


def measured(score_NC: Any, label_N: Sequence[int]) -> dict[str, Any]:
    score, label = score_NC.double().cpu().numpy(), np.asarray(label_N)
    return {
        "rows": len(label_N),
        "accuracy": round(float(accuracy(score, label)), 6),
        "macro_f1": round(float(macro_f1(score, label)), 6),
        "nll": round(float(nll(score, label)), 6),
    }
