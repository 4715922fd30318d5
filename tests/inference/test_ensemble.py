"""Ensembles: one pass for all members, votes as by hand, and nothing joined that does not belong together.

python -m pytest tests/inference/test_ensemble.py
"""

import numpy as np
import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.values import Ensemble
from foreword.errors import ArtefactError, ConfigError
from foreword.inference.ensemble import ensemble
from foreword.inference.scoring import score_rows
from foreword.methods.registry import train
from foreword.models.load import load
from tests.planted import planted_task
from tests.seeds import new_seed

KINDS = {"masked": "foreword-tiny", "causal": "foreword-tiny-causal"}
SHORT = {"steps": 2, "batch_size": 6, "eval_every": 2, "learning_rate": 0.3}


@pytest.fixture(params=KINDS)
def lm(request):
    return load(KINDS[request.param], dtype=torch.float64)


@pytest.fixture
def task():
    return planted_task(new_seed(), train=12, validation=4, test=9)


def members(lm, task) -> dict[str, Artefact]:
    """Soft prompts of several lengths and seeds, a prefix, words, words calibrated, demonstrations."""
    made = {f"soft {n}": train(lm, task, "prompt-tuning", seed=n, length=n + 2, **SHORT) for n in range(3)}
    made["prefix"] = train(lm, task, "prefix-tuning", length=3, **SHORT)
    made["words"] = train(lm, task, "manual", calibrate="batch")
    made["shown"] = train(lm, task, "few-shot", demos=1)
    return {name: one.artefact for name, one in made.items()}


@pytest.mark.parametrize("rule", ["mean", "majority"])
def test_it_answers_as_its_members_read_one_by_one(rule, lm, task, tmp_path):
    given = members(lm, task)
    made = Artefact.load(ensemble(given, rule).save(tmp_path / "e"))
    own = np.stack([score_rows(lm, [(a, task.test)])[0].softmax(-1).numpy() for a in given.values()])
    found = score_rows(lm, [(made, task.test)])[0].exp().numpy()
    if rule == "mean":
        assert np.allclose(found, own.mean(0), atol=1e-9)
        return
    for row, said in enumerate(found.argmax(1)):
        votes = np.bincount(own[:, row].argmax(1), minlength=2)
        wanted = votes.argmax() if votes[0] != votes[1] else own[:, row].mean(0).argmax()
        assert said == wanted


def test_many_prompts_are_one_pass(lm, task, monkeypatch):
    """A hook on the frozen model: N members cost one call where their rows fit into one batch."""
    given = {n: a for n, a in members(lm, task).items() if n.startswith("soft")}
    made = ensemble(given)
    calls = []
    hidden = lm.hidden_at
    monkeypatch.setattr(
        lm, "hidden_at", lambda inputs, *more: (calls.append(len(inputs.read_BR)), hidden(inputs, *more))[1]
    )
    score_rows(lm, [(made, task.test[:1])], tokens_per_batch=10**6)
    assert len(calls) == 1


def test_majority_of_hand_made_votes():
    scores = [torch.log(torch.tensor([p])).double() for p in ([0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.45, 0.55, 0.0])]
    assert Ensemble((), "majority").combined(scores).argmax() == 1
    assert Ensemble((), "mean").combined(scores).argmax() == 0
    tie = Ensemble((), "majority").combined([scores[0], scores[1]])
    assert tie.argmax() == 0  # one vote each: the mean decides
    assert tie.isneginf().tolist() == [[False, False, True]]  # an option that the row lacks


def test_what_does_not_belong_together_is_refused(lm, task):
    given = members(lm, task)
    with pytest.raises(ConfigError, match="two artefacts or more"):
        ensemble({"a": given["words"]})
    other = task.format(lm.kind, label_words={"yes": "si"})
    assert ensemble({"a": given["words"], "b": train(lm, task, "manual", form=other).artefact})  # words may differ
    renamed = planted_task(1, train=4, validation=2, test=2).with_(labels=("no", "maybe"))
    with pytest.raises(ArtefactError, match="labels no, maybe"):
        ensemble({"a": given["words"], "b": train(lm, renamed, "manual").artefact})
    with pytest.raises(ArtefactError, match="form word-counts"):
        ensemble({"a": given["words"], "b": train(lm, task, "bag-of-words").artefact})
    kind = {"masked": "causal", "causal": "masked"}[lm.kind]
    away = load(KINDS[kind], dtype=torch.float64)
    with pytest.raises(ArtefactError, match="read by one model"):
        ensemble({"a": given["prefix"], "b": train(away, task, "prompt-tuning", length=2, **SHORT).artefact})


def test_one_inside_another_brings_its_members(lm, task):
    given = members(lm, task)
    inner = ensemble({n: given[n] for n in ("soft 0", "soft 1")})
    flat = ensemble({n: given[n] for n in ("soft 0", "soft 1", "words")})
    outer = ensemble({"inner": inner, "words": given["words"]})
    one, two = (score_rows(lm, [(e, task.test)])[0] for e in (flat, outer))
    assert torch.equal(one, two)
