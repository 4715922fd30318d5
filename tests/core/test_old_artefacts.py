"""Artefacts of an older version still load and give the predictions that it recorded.

They and `predictions.json` were made by commit 608526b, with the tiny models of random weights. Run:
python -m pytest tests/core/test_old_artefacts.py
"""

import json
from pathlib import Path

import pytest
import torch

from foreword.core.artefact import RECORD, TENSORS, Artefact
from foreword.core.record import SEAL
from foreword.inference.scoring import score_rows
from foreword.models.compatibility import check
from foreword.models.load import load
from foreword.tasks.rows import Row

OLD = Path(__file__).parents[1] / "old_artefacts"
RECORDED = json.loads((OLD / "predictions.json").read_text())
MODELS = {"masked": "foreword-tiny", "causal": "foreword-tiny-causal", "seq2seq": "foreword-tiny-seq2seq"}
FORMS = {
    "hard", "soft", "prefix", "weights", "tuned", "pool", "low-rank", "probe", "word-counts", "neighbours", "ensemble"
}  # fmt: skip


def test_every_form_of_then_is_among_them():
    assert {Artefact.load(OLD / name).form for name in RECORDED["probabilities"]} == FORMS
    assert {folder.name for folder in OLD.iterdir() if folder.is_dir()} == {*RECORDED["probabilities"]}


@pytest.mark.parametrize("name", RECORDED["probabilities"])
def test_it_loads_and_predicts_as_recorded(name, tmp_path):
    artefact = Artefact.load(OLD / name)
    lm = load(MODELS[artefact.model["kind"]])
    assert check(lm, artefact) is None
    rows = [Row(fields, None) for fields in RECORDED["rows"]]
    probability_NC = score_rows(lm, [(artefact, rows)])[0].double().softmax(-1)
    torch.testing.assert_close(
        probability_NC, torch.tensor(RECORDED["probabilities"][name]).double(), rtol=0, atol=1e-5
    )
    artefact.save(tmp_path)
    assert (tmp_path / TENSORS).read_bytes() == (OLD / name / TENSORS).read_bytes()
    record, old_record = (json.loads((folder / RECORD).read_text()) for folder in (tmp_path, OLD / name))
    assert record.pop(SEAL)  # records had none then
    assert [*record.items()] == [*old_record.items()]
