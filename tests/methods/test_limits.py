"""Where answers and reasoning end: limits that follow the task, one option for both, and texts that were cut.

Run: python -m pytest tests/methods/test_limits.py
"""

import random
from dataclasses import replace
from typing import Any

import pytest

from foreword.core.format import Decoding
from foreword.core.template import Template
from foreword.evaluation.compare import CompareOptions, compare
from foreword.evaluation.records import Store
from foreword.evaluation.report import markdown
from foreword.inference.answers import answer_rows
from foreword.inference.predictor import Prompted
from foreword.methods.registry import train
from foreword.methods.words.chain_of_thought import CAP, LEAST, REASONED, reasoning_limit
from foreword.models.tiny import tiny
from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.formats import LONGEST, default_decoding, longer_targets, token_counts
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from tests.methods.planted_lm import markov_lm
from tests.seeds import new_seed


@pytest.fixture(scope="module")
def lm():
    """After a colon it says 7 for ever; after an exclamation mark it says 4 and ends."""
    return markov_lm({":": {"7": 1.0}, "7": {"7": 1.0}, "!": {"4": 1.0}, "4": {"": 1.0}})


def task_of(answer: str = "7777", rows: int = 6, **more: Any) -> Task:
    some = [{"q": f"t{n}", "answer": answer} for n in range(rows)]
    task = Task(train=some, test=some, template="Q {q} A:{answer}", name="sevens", **more)
    return task.with_(validation=())


def row(target: str) -> Row:
    return Row({"q": "t"}, None, (), "", (target,))


def test_limits_follow_training_and_validation_rows_and_never_the_test():
    short = [{"q": f"t{n}", "answer": "x" * 9} for n in range(4)]
    long = [{"q": f"u{n}", "answer": "y" * 90} for n in range(4)]
    task = Task(train=short, validation=short[:1], test=long)
    assert task.format("causal").decoding == Decoding(11, stop_strings=("\n",))
    held = Task(train=short, validation=long, test=short)
    assert held.format("causal").decoding == Decoding(92, stop_strings=("\n",))
    alone = task.with_(train=(), validation=())
    assert alone.format("causal").decoding == Decoding(LONGEST, stop_strings=("\n",))


def test_a_limit_beyond_the_usual_is_counted_in_tokens_and_has_a_cap():
    rng = random.Random(new_seed(2**32))
    lm = tiny("causal")
    text = " ".join(rng.choices("alpha beta gamma delta".split(), k=70))
    count = token_counts(lm, [text])[0]
    limit = default_decoding([row(text)], False, lm).max_new_tokens
    assert limit >= min(count, lm.dims.context // 2) and limit <= max(LONGEST, lm.dims.context // 2)
    assert default_decoding([row("x" * 10_000)], False).max_new_tokens == 1024
    assert default_decoding([row("x" * 500)], False).max_new_tokens == 502
    # A word of many bytes is a token of this tokenizer: the limit follows tokens where there is a model.
    words = markov_lm({})
    assert default_decoding([row("é" * 150)], False, words).max_new_tokens >= min(300, words.dims.context // 2)


def test_a_text_that_holds_a_number_may_say_more_than_the_number():
    lm = markov_lm({})
    for metric, chat, limit in (
        ("number", False, 256), ("number", True, 512), ("contains", True, 512), ("contains", False, 9),
        ("exact_match", True, 9),
    ):  # fmt: skip
        assert default_decoding([row("7" * 7)], chat, metric=metric).max_new_tokens == limit
        own = default_decoding([row("7" * 7)], chat, lm, metric).max_new_tokens
        assert own == min(limit, lm.dims.context // 2)


def test_targets_that_are_longer_than_answers_are_told_in_the_artefact_and_the_table(lm, tmp_path):
    task = task_of("7" * 30)
    form = replace(task.format("causal"), decoding=Decoding(10))
    rows = len(task.train)
    assert longer_targets(lm, form, task.train) == rows > 1
    assert longer_targets(lm, task.format("causal"), task.train) == 0
    made = train(lm, task, "manual", form=form).artefact
    assert made.metrics["longer_targets"] == {"rows": rows, "of": rows, "max_new_tokens": 10}
    assert "longer_targets" not in train(lm, task, "manual").artefact.metrics
    found = compare(
        lm, task, ["manual"], out=tmp_path, seeds=1, how=CompareOptions(form=lambda *_: form, sensitivity=False)
    )
    assert f"answers end at 10 tokens, and the targets of {rows} of {rows} training" in markdown(found.lines)


def test_a_cut_text_has_no_last_number_and_is_counted(lm, tmp_path):
    task = task_of("7777", metric="number")
    options = {"chain-of-thought": {"instruction": "So:", "max_new_tokens": 4}}
    found = compare(lm, task, ["manual", "chain-of-thought"], out=tmp_path, seeds=1, options=options)
    assert not found.failures
    for line in found.lines:  # 7777 is what was written, and the text had not come to its end
        assert line.metrics["number"].mean == 0 and line.metrics["no_answer"].mean == line.metrics["cut"].mean == 1
    text = markdown(found.lines)
    assert "| no answer | cut |" in text and "100.0% of the texts of chain-of-thought were cut" in text
    texts = Store(tmp_path).predictions(found.records[0])
    assert texts is not None and texts.metrics() == found.records[0].metrics
    ends = markov_lm({":": {"7": 1.0}})
    whole = compare(ends, task_of("7", metric="number"), ["manual"], out=tmp_path / "b", seeds=1)
    assert whole.lines[0].metrics["number"].mean == 1 and whole.lines[0].metrics["cut"].mean == 0
    assert "cut" not in markdown(whole.lines)


def test_a_text_that_is_the_answer_stays_it_and_is_counted(lm):
    made = train(lm, task_of("7777"), "manual").artefact
    made = replace(made, format=replace(made.format, decoding=Decoding(4)))
    [[one, *_]] = answer_rows(lm, [(made, task_of().test)])
    assert one.answer == "7777" and one.cut == one.drawn == 1
    found = Prompted(lm, made).evaluate(task_of())
    assert found["exact_match"] == found["cut"] == 1 and found["no_answer"] == 0


def test_labels_after_reasoning_that_was_cut_are_none_and_the_table_says_so(tmp_path):
    """One label is said for ever: cut, it is none; said and ended, it counts."""
    rows = [{"q": f"t{n}", "label": "sevenish"} for n in range(5)]
    task = Task(train=rows, test=rows, template="Q {q} A:{answer}", labels=["sevenish", "four"])
    task = task.with_(label_words={"sevenish": ("7777", "7"), "four": ("4",)}, validation=())
    options = {"chain-of-thought": {"instruction": "So:", "max_new_tokens": 4}}
    endless = markov_lm({":": {"7": 1.0}, "7": {"7": 1.0}})
    ended = markov_lm({":": {"7": 1.0}})
    for lm, right in ((endless, 0), (ended, 1)):
        out = tmp_path / str(right)
        found = compare(lm, task, ["chain-of-thought"], out=out, seeds=1, options=options)
        assert not found.failures and found.lines[0].metrics["accuracy"].mean == right
        assert found.lines[0].reasoned == {"no_answer": 1.0 - right, "cut": 1.0 - right}
        assert ("| no answer | cut |" in markdown(found.lines)) == (not right)


def test_reasoning_has_the_room_that_the_task_and_the_model_have():
    lm = markov_lm({})
    form = replace(task_of().format("causal"), template=Template.parse("Q {q} A:{answer}"))
    form = replace(form, decoding=Decoding(1))
    assert LEAST < reasoning_limit(lm, form, task_of(), "So") <= min(REASONED, lm.dims.context // 2)
    wide = lm
    task = task_of()
    reasoned = task.with_(train=tuple(replace(r, reasoning="x " * 5000) for r in task.train))
    assert reasoning_limit(wide, form, reasoned, "So") <= min(CAP, lm.dims.context // 2)
    made = train(lm, task_of(metric="number"), "chain-of-thought").artefact
    assert made.format.decoding is not None and made.format.decoding.max_new_tokens > LEAST


def test_what_is_said_of_decoding_holds_for_reasoning(lm):
    task = task_of(metric="number")
    form = replace(task.format("causal"), decoding=Decoding(9, repetition_penalty=1.5, stop_strings=("\n", "STOP")))
    decoding = train(lm, task, "chain-of-thought", form=form, max_new_tokens=20).artefact.format.decoding
    assert decoding is not None and (decoding.repetition_penalty, decoding.max_new_tokens) == (1.5, 20)
    assert "STOP" in decoding.stop_strings and "\n" not in decoding.stop_strings


def test_a_sample_without_an_end_casts_no_vote(lm):
    made = train(
        lm, task_of(metric="number"), "chain-of-thought", samples=3, instruction="So:", max_new_tokens=4
    ).artefact
    [[one, *_]] = answer_rows(lm, [(made, task_of().test)])
    assert one.answer is NO_ANSWER and one.votes == {} and one.cut == one.drawn
