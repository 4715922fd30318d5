"""Slot errors: planted ones are counted, and texts without any have none.

Run: python -m pytest tests/tasks/test_slots.py
"""

import random

import pytest

from foreword.errors import DataError
from foreword.evaluation.statistics import resample_summed
from foreword.tasks.slot_rules import Slots
from foreword.tasks.slots import SLOTS, meaning_of, plain, slot_errors
from foreword.tasks.task import Task
from tests.seeds import new_seed

E2E = SLOTS["e2e"]()
SAID = {  # one way to say each value, written for this test
    "eatType": {"pub": "It is a pub.", "coffee shop": "It's a coffee shop."},
    "food": {"Italian": "They serve Italian food.", "Fast food": "They have fast food."},
    "priceRange": {"cheap": "Prices are low.", "£20-25": "It costs £20 - 25.", "high": "It is expensive."},
    "customer rating": {
        "5 out of 5": "It has a high rating.",
        "low": "It is poorly rated.",
        "average": "Rated average.",
    },
    "area": {"riverside": "It stands by the river.", "city centre": "Find it in the city center."},
    "familyFriendly": {"yes": "Children are welcome.", "no": "It is not family-friendly."},
}
NAMES = ["The Golden Curry", "Blue Spice", "The Rice Boat", "Zizzi"]


def drawn(rng: random.Random) -> tuple[str, dict[str, str], tuple[int, int, int]]:
    """A text with so many attributes missing, repeated and made up, and what it was to say."""
    name = rng.choice(NAMES)
    meaning, said, counts = {"name": name}, [f"{name.removeprefix('The ')} it is called."], [0, 0, 0]
    for attribute, values in SAID.items():
        value, other = rng.sample(sorted(values), 2)
        what = rng.choice(["right", "right", "missing", "repeated", "wrong", "made up", "absent"])
        if what not in ("made up", "absent"):
            meaning[attribute] = value
        said += {
            "right": [values[value]],
            "missing": [],
            "repeated": [values[value]] * 2,
            "wrong": [values[other]],
            "made up": [values[other]],
            "absent": [],
        }[what]
        counts[0] += what == "missing"
        counts[1] += what == "repeated"
        counts[2] += what in ("wrong", "made up")
    rng.shuffle(said)
    return " ".join(said), meaning, tuple(counts)


@pytest.mark.parametrize("change", [str, str.lower, lambda t: t.replace("-", " - ").replace(".", " .")])
def test_planted_errors_are_counted(change) -> None:
    rng = random.Random(new_seed(2**32))
    rows = [drawn(rng) for _ in range(300)]
    found = slot_errors(E2E, [change(text) for text, _, _ in rows], [meaning for _, meaning, _ in rows])
    for (text, meaning, counts), features in zip(rows, found.features_RF.tolist(), strict=True):
        assert features == [*counts, len(meaning)], (text, meaning)
    whole = sum(sum(counts) for _, _, counts in rows) / sum(len(meaning) for _, meaning, _ in rows)
    assert found.value() == pytest.approx(whole)
    draws = resample_summed({"slot_error": found})["slot_error"]
    assert draws.point == pytest.approx(whole) and 0 < draws.draws_D.std() < 0.1


def test_names_are_no_words_and_may_be_said_again() -> None:
    meaning = {"name": "The Golden Curry", "near": "Café Rouge", "food": "French"}
    text = "Golden Curry near cafe rouge has French food. The Golden Curry's prices are secret."
    assert slot_errors(E2E, [text], [meaning]).features_RF[0].tolist() == [0, 0, 0, 3]
    other = {"name": "Blue Spice", "near": "The Rice Boat"}
    both = slot_errors(E2E, ["Blue Spice is near the Golden Curry.", text], [other, meaning])
    assert both.features_RF[0].tolist() == [1, 0, 1, 2]  # a name in the place of what is near is two errors
    swapped = [{"name": "Zizzi", "near": "Blue Spice"}, {"name": "Blue Spice", "near": "Zizzi"}]
    texts = ["Zizzi is near Blue Spice.", "Blue Spice is near Zizzi."]
    assert slot_errors(E2E, texts, swapped).features_RF[:, :3].sum() == 0  # one value of two attributes


def test_nothing_written_misses_everything() -> None:
    meanings = [{"name": "Zizzi", "area": "riverside"}] * 2
    found = slot_errors(E2E, ["", "..."], meanings)
    assert found.features_RF.tolist() == [[2, 0, 0, 2]] * 2 and found.value() == 1.0


def test_values_without_rules_are_said_as_they_are() -> None:
    meanings = [{"city": "New York", "day": "Monday"}, {"city": "Rome", "day": "Friday"}]
    found = slot_errors(Slots(), ["to new york, on Friday", "Rome Rome monday friday"], meanings)
    assert found.features_RF.tolist() == [[0, 0, 1, 2], [0, 1, 1, 2]]
    assert plain("The Café's £ 20-25, isn't it?") == " the cafe s £20 25 isnt it | "


def test_meanings_are_read_from_fields_or_one_text() -> None:
    assert meaning_of({"source": "name[Blue Spice], customer rating[5 out of 5],area[]"}) == {
        "name": "Blue Spice", "customer rating": "5 out of 5", "area": "",
    }  # fmt: skip
    assert meaning_of({"name": "x", "area": "y"}) == {"name": "x", "area": "y"}
    with pytest.raises(DataError, match=r"r.csv, row 3: slot errors need attributes as name\[Blue Spice\]"):
        meaning_of({"source": "a plain question"}, "r.csv, row 3")


@pytest.mark.parametrize("name", ["listings", "listings-values", "listings-kinds"])
def test_the_embedded_texts_say_everything_once(name: str) -> None:
    from foreword.tasks.read import read_task

    task = read_task(f"builtin:{name}")
    meanings = task.judge.meanings(task.test)
    for number in range(3):
        texts = [row.targets[number] for row in task.test]
        assert slot_errors(SLOTS["listings"](), texts, meanings).value() == 0
        assert slot_errors(SLOTS["listings"](), texts[1:] + texts[:1], meanings).value() > 0.8  # the control
    assert all(len(set(row.targets)) == 3 for row in task.train + task.validation + task.test)
    train = [meaning_of(row.fields) for row in task.train]
    seen = {(k, v) for meaning in train for k, v in meaning.items() if k != "name"}
    new = [{k for k, v in meaning.items() if k != "name" and (k, v) not in seen} for meaning in meanings]
    assert all("kind" in some for some in new) == (name == "listings-kinds")
    assert (sum(map(len, new)) == 0) == (name == "listings")
    words = {word for meaning in train for word in meaning["name"].split()}
    assert all(set(m["name"].split()) <= words for m in meanings) == (name != "listings-values")
    assert not {row.text() for row in task.train} & {row.text() for row in task.test}
    assert task.hashes() == read_task(f"builtin:{name}").hashes()


def test_rows_of_fields_with_slots() -> None:
    rows = [{"city": c, "day": d, "targets": [f"{c} on {d}"]} for c in ("Rome", "Oslo") for d in ("Monday", "Friday")]
    task = Task(train=rows, test=rows, metric="chrf", slots="literal")
    assert task.fields == ("city", "day")
    assert task.judge.metrics([row.targets[0] for row in task.test], task.test)["slot_error"] == 0
