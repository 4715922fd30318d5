"""Calibration against rules written out by hand: python -m pytest tests/inference/test_calibration.py

The content-free text becomes exactly uniform, PMI equals two separate runs, and a model with an additive class bias,
planted here, gets its unbiased answers back.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from foreword.core.artefact import Artefact
from foreword.core.prompts import HardPrompt
from foreword.errors import ConfigError
from foreword.inference.calibration import fit_temperature
from foreword.inference.scoring import ScoreRequest, score_readings, score_rows
from foreword.methods.registry import train
from foreword.models.encoding.encoder import Encoder
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.tasks.label_metrics import accuracy, ece, nll
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from tests.planted import planted_task
from tests.seeds import new_seed

KINDS = {"masked": "foreword-tiny", "causal": "foreword-tiny-causal"}
NOTHING = HardPrompt.empty()


@pytest.fixture(params=KINDS)
def lm(request):
    return load(KINDS[request.param], dtype=torch.float64)


@pytest.fixture
def task():
    return planted_task(new_seed(), train=12, validation=16, test=12)


def read(lm, form, rows) -> torch.Tensor:
    """Scores of a format as it is, calibration included, by the ordinary road."""
    return score_readings(lm, [ScoreRequest(NOTHING, form, rows)])[0].double()


def plain(form):
    return replace(form, shift=(), temperature=1.0, calibration="none", premise=None)


@pytest.mark.parametrize("method", ["manual", "few-shot"])
def test_a_content_free_text_becomes_exactly_uniform(method, lm, task):
    artefact = train(lm, task, method, calibrate="contextual", content_free="N/A").artefact
    free = [Row({"text": "N/A"}, None)]
    assert torch.allclose(read(lm, artefact.format, free).softmax(-1), torch.full((1, 2), 0.5).double(), atol=1e-12)
    assert (read(lm, plain(artefact.format), free).softmax(-1) - 0.5).abs().max() > 1e-3  # the control


def test_the_mean_of_several_content_free_texts_becomes_uniform(lm, task):
    artefact = train(lm, task, "manual", calibrate="contextual").artefact
    rows = [Row({"text": text}, None) for text in ("N/A", "", "[MASK]")]
    prior_C = read(lm, plain(artefact.format), rows).softmax(-1).mean(0)
    expected = read(lm, plain(artefact.format), task.test) - prior_C.log()
    assert torch.allclose(read(lm, artefact.format, task.test), expected, atol=1e-9)


@pytest.mark.parametrize("words", [None, {"yes": "well yes indeed", "no": ["no", "not at all"]}])
def test_pmi_equals_two_separate_runs(words, lm, task):
    """log p(label | text) - log p(label | premise), the premise put to the model as a template of its own."""
    form = task.format(lm.kind, label_words=words)
    artefact = train(lm, task, "manual", form=form, calibrate="pmi").artefact
    premise = {"masked": " : {mask} .", "causal": " : {answer}"}[lm.kind]
    alone = task.format(lm.kind, label_words=words, template=premise)
    expected = read(lm, form, task.test) - read(lm, alone, [Row({}, None)])
    assert torch.allclose(read(lm, artefact.format, task.test).log_softmax(-1), expected.log_softmax(-1), atol=1e-9)
    other = train(lm, task, "manual", form=form, calibrate="pmi", premise="In short, it is {mask}").artefact
    assert not torch.allclose(read(lm, other.format, task.test), read(lm, artefact.format, task.test), atol=1e-3)


def options_task() -> Task:
    rows = [
        {"premise": f"The {thing} fell", "a": f"it broke {n}", "b": f"it was heavy {n}", "label": n % 2}
        for n, thing in enumerate("cup box lamp vase book hat ball coin".split())
    ]
    return Task(train=rows, validation=rows[:4], test=rows, options=["a", "b"], text=["premise"], name="choice")


def test_pmi_of_rows_with_their_own_options_takes_each_row_s_premise_off(lm, tmp_path):
    task = options_task()
    form = task.format(lm.kind, template="{premise} because {answer}")
    artefact = train(lm, task, "manual", form=form, calibrate="pmi").artefact
    alone = replace(form, template=task.format(lm.kind, template=" because {answer}").template)
    expected = read(lm, form, task.test) - read(lm, alone, task.test)
    assert torch.allclose(score_rows(lm, [(artefact, task.test)])[0], expected, atol=1e-9)
    again = Artefact.load(artefact.save(tmp_path / "x"))
    assert torch.equal(*(score_rows(lm, [(a, task.test)])[0] for a in (artefact, again)))
    with pytest.raises(ConfigError, match="use calibrate=pmi"):
        train(lm, task, "manual", form=form, calibrate="batch")
    chosen = train(lm, task, "manual", form=form, calibrate="auto").artefact.metrics["calibration_accuracy"]
    assert [*chosen] == ["none", "pmi"]


def test_batch_takes_the_mean_off_and_looks_at_no_label(lm, task):
    rows = task.validation
    flipped = task.with_(validation=tuple(replace(r, label=1 - (r.label or 0)) for r in rows))
    unlabelled = task.with_(validation=tuple(replace(r, label=None) for r in rows))
    shifts = [train(lm, t, "manual", calibrate="batch").artefact.format.shift for t in (task, flipped, unlabelled)]
    assert shifts[0] == shifts[1] == shifts[2]
    logprob = read(lm, task.format(lm.kind), rows).log_softmax(-1)
    assert np.allclose(shifts[0], -logprob.mean(0).numpy(), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["contextual", "pmi", "batch"])
def test_a_planted_class_bias_is_taken_back(kind, rule):
    """The output head's bias of one label word is raised until that label is always said. Calibrated, the biased model
    answers as the unbiased one calibrated by the same rule, row by row; uncalibrated, it does not."""
    shape = {"vocab_size": 263, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 64, "initializer_range": 0.4, "is_decoder": kind == "causal"}  # fmt: skip
    made = {"masked": transformers.BertForMaskedLM, "causal": transformers.BertLMHeadModel}[kind]
    task = planted_task(3, train=8, validation=40, test=120)

    def calibrated() -> tuple[torch.Tensor, torch.Tensor]:
        # One content-free text: the mean of several texts' probabilities does not move with a bias as their logs do.
        artefact = train(lm, task, "manual", form=form, calibrate=rule, content_free="N/A").artefact
        return read(lm, artefact.format, task.test), read(lm, form, task.test)

    for _ in range(
        20
    ):  # a drawn model that says one label to all rows, calibrated or not, has no bias to be planted in
        torch.manual_seed(new_seed())
        model = made(transformers.BertConfig(**shape)).double().eval()
        lm = wrap(model, byte_tokenizer(kind), kind=kind)
        form = task.format(
            lm.kind, template="{text}:{answer}", label_words={"yes": "y", "no": "n"}
        )  # words of one byte
        fair, raw = calibrated()
        if len({*raw.argmax(1).tolist()} | {*fair.argmax(1).tolist()}) == 2:
            break
    [piece] = Encoder.build(lm, form).plan.words[task.labels.index("yes")][0]
    with torch.no_grad():
        model.cls.predictions.bias[piece] += 50.0
    lm = wrap(model, byte_tokenizer(kind), kind=kind)
    mended, biased = calibrated()
    assert set(biased.argmax(1).tolist()) == {task.labels.index("yes")}
    assert len(set(raw.argmax(1).tolist()) | set(fair.argmax(1).tolist())) == 2
    assert torch.allclose(mended.log_softmax(-1), fair.log_softmax(-1), atol=1e-8)
    label = np.array([row.label for row in task.test])
    assert accuracy(mended.numpy(), label) == accuracy(fair.numpy(), label)


def test_auto_takes_what_is_best_on_development_rows_and_says_so(lm, task):
    artefact = train(lm, task, "manual", calibrate="auto").artefact
    label = np.array([row.label for row in task.validation])
    told = artefact.metrics
    best = told["calibration"]["rule"]
    assert [*told["calibration_accuracy"]] == ["none", "contextual", "pmi", "batch"]
    for rule, value in told["calibration_accuracy"].items():
        alone = train(lm, task, "manual", calibrate=rule).artefact
        score = read(lm, alone.format, task.validation).numpy()
        assert value == pytest.approx(accuracy(score, label), abs=1e-6)
        assert told["calibration_nll"][rule] == pytest.approx(nll(score, label), abs=1e-5)
    top = max(told["calibration_accuracy"].values())
    assert told["calibration_accuracy"][best] == top
    assert told["validation"]["accuracy"] == top
    assert artefact.format.calibration == best


def test_a_temperature_of_scores_drawn_from_a_law_is_found():
    """Labels are drawn from softmax(score / 3): so far apart the scores are over-confident, and 3 mends them."""
    rng = np.random.default_rng(new_seed())
    score = rng.normal(size=(4000, 3)) * 4
    probability = np.exp(score / 3) / np.exp(score / 3).sum(1, keepdims=True)
    label = np.array([rng.choice(3, p=p) for p in probability])
    found = fit_temperature(torch.from_numpy(score), label.tolist())
    assert found == pytest.approx(3, rel=0.12)
    for other in (0.9 * found, 1.1 * found):
        assert nll(score / found, label) < nll(score / other, label)
    assert ece(score / found, label) < 0.04 < ece(score, label)


def test_a_temperature_changes_no_answer_and_is_part_of_the_format(lm, task):
    artefact = train(lm, task, "manual", temperature=True, calibrate="batch").artefact
    cold = replace(artefact.format, temperature=1.0)
    assert artefact.format.temperature != 1.0
    one, other = read(lm, artefact.format, task.test), read(lm, cold, task.test)
    assert torch.allclose(one * artefact.format.temperature, other, atol=1e-9)


def test_what_cannot_be_is_refused_in_a_sentence(task):
    lm = load("foreword-tiny-causal")
    bare = task.with_(validation=())
    with pytest.raises(ConfigError, match="auto chooses on labelled development rows"):
        train(lm, bare, "manual", calibrate="auto")
    with pytest.raises(ConfigError, match="needs development rows"):
        train(lm, bare, "manual", calibrate="batch")
    with pytest.raises(ConfigError, match="choose one of none, contextual"):
        train(lm, task, "manual", calibrate="contxtual")
    with pytest.raises(ConfigError, match="has fields or slots"):
        train(lm, task, "manual", calibrate="pmi", premise="{text} is")
