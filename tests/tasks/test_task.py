"""Tasks from Python objects: columns, splits, samples, hashes. Run: python -m pytest tests/tasks/test_task.py"""

import copy
from collections import Counter

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import ConfigError, DataError
from foreword.tasks.task import Task

ROWS = [{"text": f"text number {i}", "label": "abc"[i % 3]} for i in range(600)]


def texts(rows: tuple) -> list[str]:
    return [row.fields["text"] for row in rows]


def test_one_source_is_split_by_hash_and_every_row_is_used_once() -> None:
    task = Task(ROWS)
    assert sorted(texts(task.train + task.validation + task.test)) == sorted(r["text"] for r in ROWS)
    assert 380 < len(task.train) < 460
    assert 35 < len(task.validation) < 90
    assert 90 < len(task.test) < 155
    reversed_task = Task(ROWS[::-1])
    assert set(texts(task.test)) == set(texts(reversed_task.test)), "membership must not depend on order"
    assert set(texts(task.test)) != set(texts(Task(ROWS, seed=1).test))


def test_equal_texts_never_fall_on_two_sides() -> None:
    doubled = [dict(r, label="abc"[(i + 1) % 3]) for i, r in enumerate(ROWS)] + ROWS
    task = Task(doubled)
    assert not set(texts(task.train)) & set(texts(task.test))
    assert not set(texts(task.train)) & set(texts(task.validation))


def test_missing_splits_are_made_without_touching_the_test() -> None:
    task = Task(train=ROWS[:400], test=ROWS[400:])
    assert len(task.test) == 200
    assert len(task.train) + len(task.validation) == 400
    assert 15 < len(task.validation) < 75
    task = Task(train=ROWS[:400], validation=ROWS[400:])
    assert texts(task.test) == [r["text"] for r in ROWS[400:]]
    assert not set(texts(task.validation)) & set(texts(task.test))
    assert "validation rows are the test" in task.notes[0]


def test_few_shot_takes_both_samples_from_the_training_rows() -> None:
    task = Task(ROWS)
    few = task.few_shot(16, seed=3)
    for rows in (few.train, few.validation):
        assert Counter(r.label for r in rows) == {0: 16, 1: 16, 2: 16}
    assert not set(texts(few.train)) & set(texts(few.validation))
    assert set(texts(few.train + few.validation)) <= set(texts(task.train))
    assert few.test == task.test
    assert few.hashes() == task.few_shot(16, seed=3).hashes()
    assert few.hashes()["train"] != task.few_shot(16, seed=4).hashes()["train"]


def test_few_shot_says_how_many_rows_there_are() -> None:
    rows = [{"text": f"t{i}", "label": "rare" if i < 7 else "common"} for i in range(60)]
    task = Task(train=rows, validation=rows[:10], test=rows[:10])
    with pytest.raises(DataError, match=r"label 'rare' of task has 7; ask for 3 or fewer"):
        task.few_shot(4)
    with pytest.raises(ConfigError):
        task.few_shot(0)


def test_limit_draws_rows_in_their_order() -> None:
    task = Task(ROWS).limit(train=50, test=None)
    assert len(task.train) == 50
    assert task.test == Task(ROWS).test
    order = {t: i for i, t in enumerate(texts(Task(ROWS).train))}
    places = [order[t] for t in texts(task.train)]
    assert places == sorted(places)
    assert task.hashes() != Task(ROWS).limit(train=50, test=None, seed=1).hashes()


def test_shuffled_labels_keep_counts_and_texts_and_lose_the_rule() -> None:
    task = Task(ROWS)
    shuffled = task.relabel_shuffled(0)
    assert texts(shuffled.train) == texts(task.train)
    assert Counter(r.label for r in shuffled.train) == Counter(r.label for r in task.train)
    same = sum(a.label == b.label for a, b in zip(task.train, shuffled.train, strict=True))
    assert same < 0.5 * len(task.train)
    assert shuffled.test == task.test


def test_hashes_follow_text_label_and_order() -> None:
    base = Task(train=ROWS[:20], validation=ROWS[20:30], test=ROWS[30:40])
    changed = copy.deepcopy(ROWS)
    changed[35]["label"] = "a" if changed[35]["label"] != "a" else "b"
    other = Task(train=changed[:20], validation=changed[20:30], test=changed[30:40])
    assert [base.hashes()[s] == other.hashes()[s] for s in ("train", "validation", "test")] == [True, True, False]
    swapped = Task(train=ROWS[:20][::-1], validation=ROWS[20:30], test=ROWS[30:40])
    assert base.hashes()["train"] != swapped.hashes()["train"]


def test_numbers_and_numpy_and_strings_are_the_same_labels() -> None:
    frame = pandas.DataFrame({"sentence": [f"s{i}" for i in range(40)], "y": [i % 11 for i in range(40)]})
    task = Task(frame, text="sentence", label="y")
    assert task.labels == tuple(map(str, range(11))), "sorted as numbers, not as text"
    plain = Task([{"sentence": f"s{i}", "y": str(i % 11)} for i in range(40)], label="y")
    assert plain.hashes() == task.hashes()


def test_datasets_library_objects_keep_their_label_names() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"idx": datasets.Value("int32"), "sentence": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["zebra", "ant"])}
    )  # fmt: skip
    parts = {
        name: datasets.Dataset.from_dict(
            {"idx": list(range(n)), "sentence": [f"{name} {i}" for i in range(n)], "label": label}, features=features
        )
        for name, n, label in (("train", 20, [0, 1] * 10), ("validation", 6, [1] * 6), ("test", 4, [-1] * 4))
    }
    task = Task(datasets.DatasetDict(parts))
    assert task.labels == ("zebra", "ant"), "the stored order, not the alphabet"
    assert task.fields == ("sentence",)
    assert [len(task.train) + len(task.validation), len(task.test)] == [20, 6]
    assert all(row.label == 1 for row in task.test)
    assert task.notes[0] == "the test rows have no labels and are left out"


def test_options_per_row() -> None:
    rows = [{"text": f"q{i}", "choices": [f"x{i}", f"y{i}", "z"], "label": i % 3} for i in range(60)]
    task = Task(rows, options="choices")
    assert task.labels == ()
    assert task.train[0].options[2] == "z"
    by_text = [dict(r, label=r["choices"][r["label"]]) for r in rows]
    assert Task(by_text, options="choices").hashes() == task.hashes()
    columns = [{"text": r["text"], "A": r["choices"][0], "B": r["choices"][1], "label": 0} for r in rows]
    assert Task(columns, options=["A", "B"]).fields == ("text",)
    assert len(task.few_shot(5).train) == 5
    with pytest.raises(DataError, match=r"label 'w' is neither one of the row's options"):
        Task([dict(rows[0], label="w"), *rows], options="choices")


BAD = {
    "empty text": ([{"text": "a", "label": "x"}, {"text": "  ", "label": "y"}], r"row 2: field 'text' is empty"),
    "no label": ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], r"row 2 has no label"),
    "one label": ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], r"one label only \(x\)"),
    "no rows": ([], r"holds no rows"),
    "not a dict": ([{"text": "a", "label": "x"}, "b"], r"row 2 is str"),
    "list as text": ([{"text": ["a"], "label": "x"}, {"text": ["b"], "label": "y"}], r"'text' is a list"),
    "list as label": ([{"text": "a", "label": ["x"]}], r"row 1: the label is list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(case: str) -> None:
    rows, message = BAD[case]
    with pytest.raises(DataError, match=message):
        Task(rows, text="text", name="mine")


def test_bad_columns_and_labels_are_named() -> None:
    with pytest.raises(
        DataError, match=r"no column 'sentence' \(columns: text, label\); name the right one with text="
    ):
        Task(ROWS, text="sentence")
    with pytest.raises(DataError, match=r"no column 'y' .* label="):
        Task(ROWS, label="y")
    with pytest.raises(DataError, match=r"mine \(test\), row 2: label 'd' is not one of .*'a', 'b', 'c'"):
        Task(train=ROWS, test=[ROWS[0], {"text": "new", "label": "d"}], name="mine")
    with pytest.raises(ConfigError, match="rows and named splits"):
        Task(ROWS, train=ROWS)
    with pytest.raises(ConfigError, match="needs rows"):
        Task()
    with pytest.raises(DataError, match="give a list of dicts"):
        Task("a string")
    with pytest.raises(ConfigError, match="no split 'dev'"):
        Task(ROWS).rows("dev")
    with pytest.raises(ConfigError, match="no 'colour'"):
        Task(ROWS).with_(colour=1)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=4, max_size=12, unique=True))
def test_data_stays_literal(values: list[str]) -> None:
    """Braces, NUL, right-to-left text: whatever goes in comes out."""
    rows = [{"text": v, "label": "ab"[i % 2]} for i, v in enumerate(values)]
    task = Task(train=rows, validation=rows, test=rows)
    assert texts(task.train) == values
    assert len(set(task.hashes().values())) == 1


def test_rows_cannot_be_changed() -> None:
    row = Task(ROWS).train[0]
    with pytest.raises(TypeError):
        row.fields["text"] = "x"  # type: ignore[index]


def test_labels_that_neither_reading_fits_are_told_so():
    rows = [
        {"text": "a", "options": ["1", "0"], "label": 1},  # a position and a text, of two options
        {"text": "b", "options": ["0", "1"], "label": 7},  # neither
    ]
    with pytest.raises(DataError, match="neither reading gives every row an option"):
        Task(train=rows, test=rows, options="options")
