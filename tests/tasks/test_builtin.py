"""The embedded tasks keep their promises. Run: python -m pytest tests/tasks/test_builtin.py"""

import re
from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from foreword.tasks.builtin import BUILTIN, intents, sentiment
from foreword.tasks.builtin.grammar import SLOT, SPLITS, key, pools, sentence
from foreword.tasks.builtin.intents_phrases import FRAMES, OPENINGS, PHRASES, SLOTS
from foreword.tasks.builtin.sentiment_words import DOMAINS, GENERAL, VERDICTS
from foreword.tasks.task import Task


@pytest.fixture(scope="module", params=[name for name in BUILTIN if not name.startswith("listings")])
def task(request: pytest.FixtureRequest) -> Task:
    return BUILTIN[request.param]()


def words(text: str) -> list[str]:
    return key(text).split()


def test_synthetic_is_said_and_rows_are_the_same_each_time(task: Task) -> None:
    assert task.synthetic
    assert "synthetic" in task.describe()
    assert BUILTIN[task.name]().hashes() == task.hashes()


def test_sizes_balance_and_no_text_twice(task: Task) -> None:
    assert len(task.train) >= 2000
    assert (len(task.validation), len(task.test)) == (400, 1000)
    for split in SPLITS:
        counts = Counter(row.label for row in task.rows(split))
        assert len(counts) == len(task.labels)
        assert max(counts.values()) - min(counts.values()) <= 1
    every = [key(row.fields["text"]) for split in SPLITS for row in task.rows(split)]
    assert len(every) == len(set(every))
    assert min(Counter(row.label for row in task.train).values()) >= 128, "64 shots and their development twin"


def test_texts_are_whole_and_clean(task: Task) -> None:
    for split in SPLITS:
        for row in task.rows(split):
            text = row.fields["text"]
            assert not re.search(r"[{}|;!]{2}|[{}|\n]|  | [.,;:!?]|\.\.", text), text
            assert not re.search(r"\b[Aa] [aeio]|\bi\b", text), text
            assert 2 <= len(text.split()) <= 24


def test_test_rows_use_words_that_training_rows_lack(task: Task) -> None:
    seen = {word for row in task.train for word in words(row.fields["text"])}
    new = [any(w not in seen for w in words(row.fields["text"])) for row in task.test]
    assert sum(new) >= 0.9 * len(new)
    held = [any(w not in seen for w in words(row.fields["text"])) for row in task.validation]
    assert sum(held) >= 0.3 * len(held)


def test_bag_of_words_falls_well_short_on_new_words(task: Task) -> None:
    """It learns the training rows, so they are learnable; on test rows it stays above chance and far from solving."""
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
    model.fit([r.fields["text"] for r in task.train], [r.label for r in task.train])
    score = {s: model.score([r.fields["text"] for r in task.rows(s)], [r.label for r in task.rows(s)]) for s in SPLITS}
    assert score["train"] > 0.8
    assert 1.05 / len(task.labels) < score["test"] < 0.72


def loaded_words() -> list[tuple[str, dict[str, tuple[str, ...]]]]:
    found = [(f"general {i}", pools(source)) for i, source in enumerate(GENERAL)]
    for name, (_, _, aspects) in DOMAINS.items():
        found += [(f"{name} {aspect} {i}", pools(p)) for aspect, pair in aspects.items() for i, p in enumerate(pair)]
    return found


def test_loaded_words_of_reviews_are_on_one_side_and_of_one_polarity() -> None:
    split_of: dict[str, str] = {}
    polarity_of: dict[str, str] = {}
    for place, found in loaded_words():
        for split in SPLITS:
            for word in found[split]:
                assert split_of.setdefault(word, split) == split, f"{word} of {place} is in two splits"
                assert polarity_of.setdefault(word, place[-1]) == place[-1], f"{word} of {place} is of two minds"
    for source in VERDICTS:
        found = pools(source, ";")
        assert not set(found["train"]) & set(found["test"])


def test_shapes_of_the_test_rows_are_not_those_of_training() -> None:
    for shapes in (sentiment.PLAIN, sentiment.TURNED):
        assert not set(shapes["train"]) & set(shapes["test"])
    for source in [*PHRASES.values(), *SLOTS.values(), FRAMES, OPENINGS]:
        found = pools(source, ";")
        assert not set(found["train"]) & set(found["test"])
        assert all(found.values())


def test_every_slot_of_a_request_exists() -> None:
    for source in PHRASES.values():
        assert {name.removesuffix("2") for name in SLOT.findall(source)} <= set(SLOTS)
    assert tuple(PHRASES) == intents.LABELS
    assert len(intents.LABELS) == 20


def test_turned_reviews_hold_the_opposite_word() -> None:
    """Labels are right: in "the X was not W at all" W has the other polarity; in "the X was really W" the label's."""
    polarity = {w: 1 - int(place[-1]) for place, found in loaded_words() for split in SPLITS for w in found[split]}
    hits = 0
    for row in BUILTIN["sentiment"]().train:
        turned = re.fullmatch(r"The [a-z ]+ was not (.+) at all\.", row.fields["text"])
        plain = re.fullmatch(r"The [a-z ]+ was really (.+)\.", row.fields["text"])
        if turned:
            assert polarity[turned[1]] == 1 - row.label
        if plain:
            assert polarity[plain[1]] == row.label
        hits += bool(turned or plain)
    assert hits > 50


def test_articles_and_capitals() -> None:
    assert sentence("a awful film. a useful one! i saw a hour") == "An awful film. A useful one! I saw a hour"
