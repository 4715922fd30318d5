"""Metrics against scikit-learn and by hand. Run: python -m pytest tests/tasks/test_metrics.py"""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss

from foreword.tasks import label_metrics


def draw(seed: int, rows: int = 300, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label_B = rng.integers(0, labels - 1, rows)  # the last label never occurs as truth
    score_BC = rng.normal(size=(rows, labels)) * 2
    score_BC[np.arange(rows), label_B] += 1.5
    return score_BC, label_B


@pytest.mark.parametrize("seed", range(4))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    score_BC, label_B = draw(seed)
    guess_B, prob_BC = score_BC.argmax(1), np.exp(log_softmax(score_BC, axis=1))
    found = label_metrics.all_metrics(score_BC, label_B)
    assert found["accuracy"] == pytest.approx(accuracy_score(label_B, guess_B))
    assert found["macro_f1"] == pytest.approx(f1_score(label_B, guess_B, average="macro"))
    assert found["nll"] == pytest.approx(log_loss(label_B, prob_BC, labels=range(5)))
    assert found["brier"] == pytest.approx(((prob_BC - np.eye(5)[label_B]) ** 2).sum(1).mean())


def test_ece_by_hand() -> None:
    """Four rows in two bins: 0.75 sure and right half of the time, 0.9 sure and always right."""
    prob_BC = np.array([[0.75, 0.25], [0.75, 0.25], [0.1, 0.9], [0.1, 0.9]])
    value = label_metrics.ece(np.log(prob_BC), np.array([0, 1, 1, 1]))
    assert value == pytest.approx(0.5 * 0.25 + 0.5 * 0.1)


def test_ece_of_calibrated_scores_is_small_and_of_overconfident_ones_is_not() -> None:
    rng = np.random.default_rng(0)
    prob_B = rng.uniform(0.5, 1, 20000)
    label_B = (rng.uniform(size=20000) > prob_B).astype(np.int64)  # label 0 with probability prob
    score_BC = np.log(np.stack([prob_B, 1 - prob_B], axis=1))
    assert label_metrics.ece(score_BC, label_B) < 0.015
    assert label_metrics.ece(score_BC * 4, label_B) > 0.1


def test_a_label_that_a_row_lacks_gets_no_probability() -> None:
    score_BC = np.array([[0.0, 0.0, -np.inf], [1.0, 1.0, 1.0]])
    prob_BC = np.exp(label_metrics.log_probabilities(score_BC))
    np.testing.assert_allclose(prob_BC, [[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert all(np.isfinite(v) for v in label_metrics.all_metrics(score_BC, np.array([0, 2])).values())


def test_scores_need_no_normalising() -> None:
    score_BC, label_B = draw(9)
    moved = label_metrics.all_metrics(score_BC + 1000.0, label_B)
    assert moved == pytest.approx(label_metrics.all_metrics(score_BC, label_B))
