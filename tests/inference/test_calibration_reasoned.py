"""Label words scored after reasoning, calibrated. python -m pytest tests/inference/test_calibration_reasoned.py"""

import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.errors import ConfigError
from foreword.inference.scoring import score_rows
from foreword.methods.registry import train
from foreword.models.tiny import tiny
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from tests.planted import planted_task
from tests.seeds import new_seed

SCORED = {"extract": "score", "max_new_tokens": 4}


@pytest.fixture
def task() -> Task:
    return planted_task(new_seed(), train=8, validation=12, test=6)


def log_probabilities(lm, artefact: Artefact, rows) -> torch.Tensor:
    return score_rows(lm, [(artefact, rows)])[0].double().log_softmax(-1)


def test_a_content_free_text_says_nothing_any_more(task):
    lm = tiny("causal")
    made = train(lm, task, "chain-of-thought", calibrate="contextual", content_free="N/A", **SCORED).artefact
    plain = train(lm, task, "chain-of-thought", **SCORED).artefact
    free = [Row({"text": "N/A"}, None, (), "")]
    assert torch.allclose(log_probabilities(lm, made, free).exp(), torch.tensor([[0.5, 0.5]]).double(), atol=1e-6)
    assert not torch.allclose(log_probabilities(lm, plain, free).exp(), torch.tensor([[0.5, 0.5]]).double(), atol=1e-3)
    assert made.format.calibration == "contextual" and made.metrics["calibration"]["rule"] == "contextual"


@pytest.mark.parametrize("samples", [1, 3])
def test_batch_takes_the_mean_of_the_development_rows_off(task, samples, tmp_path):
    lm = tiny("causal")
    options = {**SCORED, "samples": samples}
    plain = train(lm, task, "chain-of-thought", seed=3, **options).artefact
    made = train(lm, task, "chain-of-thought", seed=3, calibrate="batch", **options).artefact
    mean = log_probabilities(lm, plain, task.validation).mean(0)
    wanted = (log_probabilities(lm, plain, task.test) - mean).log_softmax(-1)
    again = Artefact.load(made.save(tmp_path / "x"))
    assert torch.allclose(log_probabilities(lm, again, task.test), wanted, atol=1e-6)


def test_auto_tells_what_it_chose_among(task):
    lm = tiny("causal")
    made = train(lm, task, "chain-of-thought", calibrate="auto", **SCORED).artefact
    told = made.metrics["calibration_accuracy"]
    assert [*told] == ["none", "contextual", "batch"]
    assert told[made.metrics["calibration"]["rule"]] == max(told.values())
    assert made.metrics["validation"]["accuracy"] == pytest.approx(max(told.values()))


def test_what_cannot_be_calibrated_is_refused(task):
    lm = tiny("causal")
    with pytest.raises(ConfigError, match="give extract=score"):
        train(lm, task, "chain-of-thought", calibrate="batch", max_new_tokens=4)
    with pytest.raises(ConfigError, match="needs development rows"):
        train(lm, task.with_(validation=()), "chain-of-thought", calibrate="batch", **SCORED)
    with pytest.raises(ConfigError, match="choose one of none, contextual, batch, auto"):
        train(lm, task, "chain-of-thought", calibrate="pmi", **SCORED)
