"""Fit the logistic regressions of the baselines without a gradient through the model, by scikit-learn."""

from typing import Any

import numpy as np

from foreword.errors import DataError
from foreword.tasks.task import Task

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
DEFAULT_STRENGTH = 1.0


def require_classes(name: str, task: Task) -> None:
    """Raise a DataError unless the training rows have at least two labels, as a regression needs."""
    seen = sorted({row.label for row in task.train if row.label is not None})
    if len(seen) < 2:
        have = f"are all labelled {task.labels[seen[0]]!r}" if seen else "are missing"
        raise DataError(f"{name}: the training rows of {task.name!r} {have}; give rows of two labels or more.")


def logistic(x: Any, y: np.ndarray, labels: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return multinomial weights (labels, columns) and biases; a label without a training row gets a bias of -30."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=2000, random_state=seed)
    model.fit(x, y)
    intercept = np.atleast_1d(model.intercept_)
    weight = np.zeros((labels, x.shape[1]))
    bias = np.full(labels, -30.0)
    if len(model.classes_) == 2:  # one column of log-odds: as two rows of opposite sign, halved
        weight[model.classes_] = np.stack([-model.coef_[0] / 2, model.coef_[0] / 2])
        bias[model.classes_] = np.array([-intercept[0] / 2, intercept[0] / 2])
    else:
        weight[model.classes_] = model.coef_
        bias[model.classes_] = intercept
    return weight, bias


def choose_regularisation(x: Any, y: np.ndarray, held: Any, held_y: np.ndarray, seed: int) -> float:
    """Return the strength with the best log-likelihood on the validation rows; 1.0 without any."""
    if held is None or not len(held_y):
        return DEFAULT_STRENGTH
    labels = int(max(y.max(), held_y.max())) + 1
    best = (-np.inf, DEFAULT_STRENGTH)
    for strength in STRENGTHS:
        weight, bias = logistic(x, y, labels, strength, seed)
        score = np.asarray(x_times(held, weight)) + bias
        score = score - score.max(1, keepdims=True)
        log_p = score - np.log(np.exp(score).sum(1, keepdims=True))
        best = max(best, (float(log_p[np.arange(len(held_y)), held_y].mean()), strength))
    return best[1]


def x_times(x: Any, weight: np.ndarray) -> np.ndarray:
    """Return rows (dense or sparse) times weights."""
    return x @ weight.T
