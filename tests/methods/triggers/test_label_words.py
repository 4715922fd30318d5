"""python -m pytest tests/methods/triggers/test_label_words.py

Acceptance test 18: planted words are found, scores are what the paper's equation says, chosen sets beat random ones.
"""

import random

import numpy as np
import pytest
import torch

from foreword.core.values import Probe
from foreword.inference.scoring import score_rows
from foreword.methods.registry import train
from foreword.methods.triggers.label_words import _measured, classifier_scores, find_words, fit_classifier, ratio_scores
from foreword.models.hf.families import output_of
from tests.methods.triggers.trigger_setups import word_lm, word_task
from tests.seeds import new_seed

SEED = new_seed()


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_scores_are_the_softmax_over_labels_with_the_bias(kind):
    lm, model = word_lm(kind, 30, seed=SEED)
    weight_VD, _ = output_of(model)
    generator = torch.Generator().manual_seed(SEED)
    weight_CD = torch.randn(3, lm.dims.width, generator=generator, dtype=torch.float64)
    bias_C = torch.randn(3, generator=generator, dtype=torch.float64)
    ids = torch.arange(11, 41)
    found = classifier_scores(lm, weight_CD, bias_C, ids)
    explicit = (weight_VD[ids] @ weight_CD.T + bias_C).softmax(1).T
    assert torch.allclose(found.exp(), explicit, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["classifier", "ratio"])
def test_planted_words_are_found_in_made_up_answer_vectors(how):
    """Rows of a label have an answer vector near the output rows of three words drawn for it."""
    lm, model = word_lm("causal", 60, seed=SEED, width=128)
    weight_VD = output_of(model)[0].detach()
    rng = random.Random(SEED)
    words = rng.sample(range(11, 71), 6)
    planted = [words[:3], words[3:]]
    generator = torch.Generator().manual_seed(SEED)
    label_N = np.array([n % 2 for n in range(80)])
    mean_CD = torch.stack([weight_VD[some].mean(0) for some in planted]) * 8
    vector_ND = mean_CD[label_N] + 0.1 * torch.randn(80, 128, generator=generator, dtype=torch.float64)
    ids = torch.arange(11, 71)
    if how == "classifier":
        score_CA = classifier_scores(lm, *fit_classifier([vector_ND] * 2, [label_N] * 2, 2, 0), ids)
    else:
        score_CA = ratio_scores(lm, vector_ND, label_N, 2, ids)
    for label in range(2):
        best = {int(ids[i]) for i in score_CA[label].topk(3).indices}
        assert len(best & {*planted[label]}) >= 2, (SEED, how, best, planted)
    chosen = [[int(ids[i]) for i in score_CA[label].topk(3).indices] for label in range(2)]
    ours = _measured(lm, vector_ND, label_N, (("a",), ("b",)), tuple(map(tuple, chosen)), "x").likelihood
    drawn, others = [], [token for token in range(11, 71) if token not in words]
    for _ in range(20):
        some = rng.sample(others, 6)
        drawn.append(
            _measured(lm, vector_ND, label_N, (("a",), ("b",)), (tuple(some[:3]), tuple(some[3:])), "x").likelihood
        )
    assert ours > max(drawn)


def test_sets_of_one_to_five_words_are_ranked_on_development_rows_as_the_model_scores_them():
    lm, _ = word_lm("causal", 40, seed=SEED)
    task = word_task(40, SEED, rows=24)
    form = task.format("causal")
    choices = find_words(lm, task, form)
    assert len(choices) == 11 and {c.how for c in choices} >= {"given", "ratio, 1", "classifier, 5"}
    assert [(c.accuracy, c.likelihood) for c in choices] == sorted(
        ((c.accuracy, c.likelihood) for c in choices), reverse=True
    )
    for choice in (choices[0], choices[-1]):
        flat = [w for some in choice.words for w in some]
        assert len(set(flat)) == len(flat) and all(1 <= len(some) <= 5 for some in choice.words)
        artefact = train(
            lm, task.with_(label_words=dict(zip(task.labels, choice.words, strict=True))), "manual"
        ).artefact
        assert artefact.metrics["validation"]["accuracy"] == pytest.approx(choice.accuracy, abs=1e-6)
        assert artefact.metrics["validation"]["nll"] == pytest.approx(-choice.likelihood, abs=1e-5)


def test_words_and_prompt_in_turn_never_end_below_the_manual_prompt():
    lm, _ = word_lm("causal", 40, seed=SEED)
    task = word_task(40, SEED, rows=16)
    options = {"length": 2, "steps": 4, "candidates": 6, "label_words": "search", "rounds": 2}
    artefact = train(lm, task, "autoprompt", **options).artefact
    manual = train(lm, task, "manual").artefact.metrics["validation"]
    validation = artefact.metrics["validation"]
    assert (validation["accuracy"], -validation["nll"] + 1e-6) >= (manual["accuracy"], -manual["nll"])
    assert len(artefact.trace["words"]) == 3


def test_label_vectors_begin_as_the_label_words_and_learn():
    lm, _ = word_lm("masked", 40, seed=SEED, width=64, dtype=torch.float32)  # wide enough to tell 24 rows apart
    task = word_task(40, SEED, rows=24)
    start = train(lm, task, "soft-verbalizer", steps=1, learning_rate=1e-12).artefact
    manual = train(lm, task, "manual").artefact
    one, two = (score_rows(lm, [(a, task.test)])[0] for a in (start, manual))
    assert torch.allclose(one.log_softmax(1), two.log_softmax(1), atol=1e-4)
    assert isinstance(start.value, Probe) and start.value.pool == "head"
    learnt = train(lm, task.with_(validation=task.train), "soft-verbalizer", steps=1500, learning_rate=0.05).artefact
    assert learnt.metrics["validation"]["accuracy"] > 0.9
