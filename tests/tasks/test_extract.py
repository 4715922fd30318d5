"""Answers found in texts, and the metrics of texts. Run: python -m pytest tests/tasks/test_extract.py"""

import random
import re
import string

import pytest

from foreword.tasks.answer_metrics import METRICS, value_of
from foreword.tasks.extract import NO_ANSWER, extract, numbers
from foreword.tasks.text_metric import Judge
from recipes import instruction_induction as induction

NUMBER = {
    "12 and 7 make 19.": "19",
    "So the answer is 1,234.50, I think; 7 more": "1234.5",
    "the answer is: -3": "-3",
    "Answer: 5 apples, of 9": "5",
    "#### 42": "42",
    "It is \u22127": "-7",
    "3-5": "5",
    "x=.5": "0.5",
    "1e3": "1000",
    "the answer is unknown, but 4 + 4 = 8": "4",
    "v2 and b4me": NO_ANSWER,
    "no number": NO_ANSWER,
    "": NO_ANSWER,
    "The answer is 3. No, the answer is 4.": "4",
    "12.0": "12",
}


@pytest.mark.parametrize("text", NUMBER)
def test_numbers(text):
    assert extract("number", text) == NUMBER[text]


CHOICES = [("good", "positive"), ("not good", "negative"), ("so-so",)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The answer is Good.", "good"), ("The answer is not good", "not good"),
        ("It was good, then bad: negative", "not good"),
        ("goodness", NO_ANSWER), ("answer: so-so, not good", "so-so"), ("good good POSITIVE", "good"), ("", NO_ANSWER),
        ("positive. The answer is hidden", "good"),
    ],
)  # fmt: skip
def test_choices(text, wanted):
    assert extract("choice", text, CHOICES) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x y. The answer is the cat. And so on", "the cat"), ("The answer is 3.5 m.", "3.5 m"), ("the cat", NO_ANSWER),
        ("answer: 'was seen'\nQ: more", "was seen"), ("The answer is ", NO_ANSWER),
        ("the answer is a. The answer is b", "b"),
    ],
)  # fmt: skip
def test_spans(text, wanted):
    assert extract("span", text) == wanted


def test_a_failure_is_no_text_and_worth_nothing():
    assert NO_ANSWER not in ("", "no answer found", None)
    assert extract(None, " \n") is NO_ANSWER
    assert extract(None, " all of it. ") == "all of it."
    for metric in METRICS:
        assert value_of(metric, NO_ANSWER, ["no answer found", ""]) == 0.0


# What the metrics of instruction induction do, written down from their description with Python's simplest means.
def plain(text: str) -> str:
    text = text.replace(" and ", " ").strip().split("\n")[0].split(".")[0].lower().replace("-", " ")
    return " ".join("".join(c for c in text if c not in string.punctuation).split())


def plain_value(metric: str, text: str, target: str) -> float:
    one, other = plain(text), plain(target)
    if metric == "exact_match":
        return float(one == other)
    if metric == "exact_set":
        return float(set(one.split()) == set(other.split()))
    if metric == "contains":
        return float(re.search(rf"\b{re.escape(other)}\b", one) is not None)
    words, wanted = one.split(), other.split()
    same = 0
    for word in wanted:
        if word in words:
            words.remove(word)
            same += 1
    precision, recall = same / max(1, len(one.split())), same / max(1, len(wanted))
    return 2 * precision * recall / (precision + recall) if same else 0.0


def test_metrics_agree_with_their_description():
    """Random texts of words, punctuation, lines and " and ", where no point or minus stands by a number."""
    rng = random.Random(5)
    words = "the cat Cat sat on a mat and dog-house it's x 12 7, (so) end. \n".split(" ")
    for _ in range(20_000):
        text, target = (" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(2))
        if not plain(target) or not plain(text):
            continue
        for metric in ("exact_match", "exact_set", "contains", "f1"):
            ours = induction.METRICS[metric](text, target)
            assert ours == pytest.approx(plain_value(metric, text, target)), (metric, text, target)


def test_numbers_are_not_cut_or_turned():
    assert METRICS["exact_match"]("3.1", "3.2") == METRICS["exact_match"]("-5", "5") == 0
    assert METRICS["exact_match"]("-5.", "-5") == METRICS["number"]("so it is 5.0", "5") == 1
    assert METRICS["number"]("5 or 6", "5") == METRICS["number"]("none", "5") == 0
    assert induction.METRICS["exact_match"]("3.1", "3.2") == induction.METRICS["exact_match"]("-5", "5") == 0
    assert induction.normalised("A well-known CASE, e.g. this") == "a well known case e"
    assert numbers("1,000 and 2.5e1") == [1000, 25]


def test_what_is_only_punctuation_is_compared_as_it_is():
    assert METRICS["exact_match"]("!", "!") == 1
    assert METRICS["exact_match"]("?", "!") == 0


def test_the_best_target_counts_and_the_own_metric_comes_first():
    found = Judge("contains").summed(["a big cat", NO_ANSWER, "dog"], [("dog", "cat"), ("x",), ("dog",)])
    assert list(found) == ["contains", "exact_match", "f1", "no_answer"]
    assert {name: one.features_RF[:, 0].tolist() for name, one in found.items()} == {
        "contains": [1, 0, 1], "exact_match": [0, 0, 1], "f1": [0.5, 0, 1], "no_answer": [0, 1, 0],
    }  # fmt: skip
