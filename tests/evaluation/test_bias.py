"""Biases of models whose law is planted: python -m pytest tests/evaluation/test_bias.py"""

import numpy as np
import pytest

from foreword.errors import ConfigError, DataError
from foreword.evaluation.bias import bias_report, biases
from foreword.models.load import load
from tests.planted import planted_task
from tests.seeds import new_seed


def test_a_model_that_says_the_last_label_has_recency_and_nothing_else():
    rng = np.random.default_rng(new_seed())
    shown = [rng.permutation([0, 1] * 3).tolist() for _ in range(400)]
    said = np.array([[own[-1]] * 10 for own in shown])
    found = biases(said, shown, 2)
    share = np.mean([own[-1] for own in shown])
    assert found.recency == pytest.approx(2 * share * (1 - share), abs=1e-9)
    assert found.majority is None  # every prompt is balanced
    assert found.said == pytest.approx((1 - share, share))


def test_a_model_that_says_the_label_of_most_has_majority():
    shown = [[0, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 1]]
    said = np.array([[0] * 8, [0] * 8, [1] * 8, [1] * 8])
    found = biases(said, shown, 2)
    assert found.majority == pytest.approx(0.5)
    assert found.recency == pytest.approx(0.0)


def test_a_model_that_listens_to_the_text_alone_has_neither():
    rng = np.random.default_rng(new_seed())
    shown = [rng.integers(0, 3, 5).tolist() for _ in range(20)]
    said = np.tile(rng.integers(0, 3, 12), (20, 1))
    found = biases(said, shown, 3)
    assert found.recency == pytest.approx(0.0)
    assert found.majority == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["foreword-tiny", "foreword-tiny-causal"])
def test_the_report_counts_what_it_read(name):
    task = planted_task(3, train=12, validation=10, test=2)
    found = bias_report(load(name), task, demos=2, draws=2, permutations=2, rows=8)
    assert (found.prompts, found.rows, found.shown) == (4, 8, 2)
    for shares in (found.true, found.prior, found.before.said, found.after.said):
        assert sum(shares) == pytest.approx(1.0)
    assert found == bias_report(load(name), task, demos=2, draws=2, permutations=2, rows=8)
    with pytest.raises(DataError, match="no labelled development rows"):
        bias_report(load(name), task.with_(validation=()))
    with pytest.raises(ConfigError, match="two prompts or more"):
        bias_report(load(name), task, draws=1, permutations=1)
