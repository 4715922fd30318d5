"""Comparisons of answers in text: their numbers come from the texts kept.

Run: python -m pytest tests/evaluation/test_texts.py
"""

import json
from pathlib import Path

import numpy as np
import pytest

from foreword.errors import ConfigError, DataError
from foreword.evaluation.compare import CompareOptions, compare
from foreword.evaluation.predictions import TextPredictions
from foreword.evaluation.records import Store
from foreword.evaluation.report import markdown, matrix
from foreword.evaluation.statistics import resample_values
from foreword.evaluation.tasks import train_tasks
from foreword.models.load import load
from foreword.tasks.task import Task
from tests.methods.planted_lm import markov_lm


def answers_task(seven: int = 12, rows: int = 20) -> Task:
    """Of the test rows the first `seven` want a 7."""
    test = [{"q": f"t{n}", "answer": ["7", "seven"] if n < seven else ["3"]} for n in range(rows)]
    train = [{"q": f"r{n}", "answer": "7"} for n in range(8)]
    return Task(train=train, validation=train[:4], test=test, template="Q {q} A:{answer}", name="sevens")


@pytest.fixture(scope="module")
def lm():
    return markov_lm({":": {"7": 0.6, "3": 0.4}, "!": {"x": 1.0}})


def test_what_is_recorded_is_what_was_written(lm, tmp_path: Path) -> None:
    task, methods = answers_task(), ("manual", "chain-of-thought")
    options = {"chain-of-thought": {"instruction": "So!", "max_new_tokens": [3, 5]}}
    found = compare(lm, task, methods, out=tmp_path, seeds=2, options=options)
    assert not found.failures
    own = {line.method: line for line in found.lines}
    assert own["manual"].metrics["exact_match"].mean == pytest.approx(0.6)
    assert own["manual"].metrics["no_answer"].mean == 0
    assert own["chain-of-thought"].metrics["exact_match"].mean == 0
    assert own["chain-of-thought"].metrics["no_answer"].mean == 1
    gap = own["chain-of-thought"].versus["manual"]
    assert gap.mean == pytest.approx(-0.6) and gap.shown
    assert own["manual"].metrics["exact_match"].low < 0.6 < own["manual"].metrics["exact_match"].high
    store = Store(tmp_path)
    for record in found.records:
        assert record.primary == "exact_match"
        kept = [json.loads(line) for line in (tmp_path / record.predictions).read_text().splitlines()]
        right = [one["answer"] is not None and one["answer"] in one["targets"] for one in kept]
        assert np.mean(right) == record.metrics["exact_match"]
        assert [one["targets"] for one in kept] == [list(row.targets) for row in task.test]
        again = store.predictions(record)
        assert isinstance(again, TextPredictions) and again.metrics() == record.metrics
    lines = (tmp_path / "results.jsonl").read_bytes()
    compare(lm, task, methods, out=tmp_path, seeds=2, options=options)
    assert (tmp_path / "results.jsonl").read_bytes() == lines
    text = markdown(found.lines)
    assert "| exact match | F1 | no answer |" in text and "points of exact match" in text
    assert "Exact match, F1, no answer in percent" in text
    assert "accuracy" not in text and "exact match" in matrix(found.lines)


def test_corpus_metrics_are_in_the_table_with_paired_differences(lm, tmp_path: Path) -> None:
    """The whole way: of texts kept, against sacrebleu itself."""
    from sacrebleu.metrics.bleu import BLEU

    test = [
        {"q": f"city[{'x' * (n % 3 + 1)}]", "n": str(n), "answer": ["7 xx", "7"] if n % 2 else ["x 3"]}
        for n in range(20)
    ]
    task = Task(
        text=["q", "n"],
        train=test[:8],
        validation=test[:4],
        test=test,
        template="Q {q} A:{answer}",
        metric="bleu",
        case="lower",
    )
    options = {"chain-of-thought": {"instruction": "So!", "max_new_tokens": 5}}
    found = compare(lm, task, ["manual", "chain-of-thought"], out=tmp_path, seeds=2, options=options)
    assert not found.failures
    line = next(line for line in found.lines if line.method == "manual")
    assert line.primary == "bleu" and line.case == "lower" and "nist" in line.metrics
    record = next(r for r in found.records if r.method == "manual")
    texts = Store(tmp_path).predictions(record)
    assert isinstance(texts, TextPredictions) and texts.metrics() == record.metrics and texts.judge == task.judge
    streams = [[own[i] if i < len(own) else None for own in texts.targets] for i in range(2)]
    told = BLEU(force=True).corpus_score([a or "" for a in texts.answers], streams).score / 100
    assert line.metrics["bleu"].mean == pytest.approx(told)
    assert line.metrics["bleu"].low <= told <= line.metrics["bleu"].high
    gap = next(one for one in found.lines if one.method != "manual").versus["manual"]
    assert gap.mean == pytest.approx(found.lines[1].metrics["bleu"].mean - told)
    text = markdown(found.lines)
    assert "| BLEU | chrF | ROUGE-L | NIST | distinct-1 | distinct-2 | exact text |" in text
    assert "NIST as it is" in text and "compared in lower case" in text
    other = compare(lm, task.with_(metric="exact_match", case="kept"), ["manual"], out=tmp_path, seeds=1)
    assert other.lines[0].primary == "exact_match"  # judged otherwise, it is another run
    assert [t.answers for t in (texts.pick([3, 0]),)] == [(texts.answers[3], texts.answers[0])]


def test_lost_or_broken_texts_are_read_again(lm, tmp_path: Path) -> None:
    task = answers_task()
    [record] = compare(lm, task, ["manual"], out=tmp_path, seeds=1).records
    place = tmp_path / record.predictions
    before = place.read_bytes()
    for damage in (b"{", b'{"answer": 1}\n', None):
        place.unlink() if damage is None else place.write_bytes(damage)
        assert Store(tmp_path).predictions(record) is None
        compare(lm, task, ["manual"], out=tmp_path, seeds=1)
        assert place.read_bytes() == before


def test_development_rows_alone(lm, tmp_path: Path) -> None:
    found = compare(lm, answers_task(), ["manual"], out=tmp_path, seeds=1, how=CompareOptions(test=False))
    assert "| development exact match |" in markdown(found.lines)
    assert found.lines[0].development["exact_match"] == 1.0


def test_what_cannot_be_done_is_told_before_anything_is(lm, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="linear-probe needs labels"):
        compare(lm, answers_task(), ["manual", "linear-probe"], out=tmp_path, seeds=1)
    with pytest.raises(ConfigError, match="masked model cannot write"):
        compare(load("foreword-tiny"), answers_task(), ["manual"], out=tmp_path, seeds=1)
    missing = [{"q": "t", "answer": []}, {"q": "u", "answer": "x"}]
    with pytest.raises(DataError, match=r"'answer' is \[\]; give the answer as text, or a list of answers"):
        Task(train=missing, test=missing)


def test_many_tasks_of_texts_are_judged_by_their_metric(lm, tmp_path: Path) -> None:
    tasks = {name: answers_task(seven).with_(name=name) for name, seven in (("a", 5), ("b", 15))}
    report = train_tasks(
        lm, tasks, "chain-of-thought", out=tmp_path, options={"instruction": "So:", "max_new_tokens": 3}
    )
    assert [line.verdict for line in report.lines] == ["no difference shown"] * 2
    assert [line.manual.mean for line in report.lines] == [0.25, 0.75]
    told = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert told[1]["learnt"]["exact_match"] == 0.75


def test_values_are_resampled_as_accuracies_are() -> None:
    """The same rows right, as scores or as values: the same draws."""
    from foreword.evaluation.statistics import resample

    rng = np.random.default_rng(3)
    logprob = np.log(rng.dirichlet([1, 1, 1], 50))
    label = rng.integers(3, size=50)
    right = (logprob.argmax(1) == label).astype(float)
    one, other = resample("accuracy", logprob, label), resample_values({"x": right})["x"]
    assert one.point == other.point
    np.testing.assert_allclose(one.draws_D, other.draws_D)
