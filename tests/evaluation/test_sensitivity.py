"""How much hangs on a template, against the same templates one by one.

python -m pytest tests/evaluation/test_sensitivity.py
"""

import numpy as np
import pytest

from foreword.core.template import Template
from foreword.evaluation.compare import CompareOptions, compare
from foreword.evaluation.report import markdown
from foreword.inference.scoring import score_rows
from foreword.methods.registry import train
from foreword.models.load import load
from foreword.tasks.label_metrics import accuracy
from foreword.tasks.paraphrases import paraphrases
from tests.planted import planted_task


@pytest.mark.parametrize("name", ["foreword-tiny", "foreword-tiny-causal"])
def test_worst_median_and_best_are_those_of_each_template_alone(name, tmp_path):
    lm, task = load(name), planted_task(4, train=8, validation=6, test=20)
    methods = ["manual", "few-shot", "bag-of-words"]
    options = {"few-shot": {"demos": 2}, "manual": {"calibrate": "batch"}}
    how = CompareOptions(sensitivity=True)
    found = compare(lm, task, methods, out=tmp_path, seeds=1, options=options, how=how)
    told = {r.method: r.details.get("templates") for r in found.records}
    assert told["bag-of-words"] is None
    label = np.array([row.label for row in task.test])
    for method in ("manual", "few-shot"):
        alone = []
        for source in paraphrases(task.name, task.fields):
            form = task.format(lm.kind, template=Template.parse(source).for_kind(lm.kind).source)
            artefact = train(lm, task, method, form=form, **options[method]).artefact
            alone.append(accuracy(score_rows(lm, [(artefact, task.test)])[0].double().numpy(), label))
        assert told[method]["accuracies"] == pytest.approx(alone)
        assert told[method]["tried"] == 10
        wanted = (min(alone), float(np.median(alone)), max(alone))
        assert [told[method][n] for n in ("worst", "median", "best")] == pytest.approx(wanted)
    text = markdown(found.lines)
    assert "other templates" in text
    assert "2 of 2" in text  # demonstrations shown
    before = (tmp_path / "results.jsonl").read_bytes()
    compare(lm, task, methods, out=tmp_path, seeds=1, options=options, how=how)
    assert (tmp_path / "results.jsonl").read_bytes() == before  # nothing is measured twice
    compare(lm, task, methods, out=tmp_path, seeds=1, options=options)
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "fields"),
    [("sst2", ["text"]), ("mr", ["text"]), ("trec", ["text"]), ("ag_news", ["text"]), ("huffpost", ["text"]),
     ("reuters", ["text"]), ("hwu64", ["text"]), ("sick", ["text_a", "text_b"]), ("rte", ["text_a", "text_b"]),
     ("other", ["sentence"]), ("other", ["a", "b_c", "d"])],
)  # fmt: skip
def test_every_task_has_ten_different_templates_for_both_kinds(name, fields):
    found = paraphrases(name, fields)
    assert len(set(found)) >= 10
    for source in found:
        template = Template.parse(source)
        assert sorted(template.fields) == sorted(fields)
        assert source.count("|shorten}") == 1
        assert template.for_kind("causal").answer is not None
