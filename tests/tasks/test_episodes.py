"""python -m pytest tests/tasks/test_episodes.py"""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foreword.errors import ConfigError, DataError
from foreword.tasks.class_splits import named_splits, plain, read_classes, refuse_leakage
from foreword.tasks.episodes import Episode, EpisodeSource, joined
from foreword.tasks.read_again import read_again
from foreword.tasks.rows import Row
from foreword.tasks.task import Task

DATA = Path(os.environ.get("FOREWORD_DATA", "../shared/data"))
COUNTS = {
    ("reuters", "metaprompter2023"): (299, 100, 218),
    ("reuters", "ds2020"): (299, 100, 218),
    ("huffpost", "metaprompter2023"): (17891, 4476, 14339),
    ("huffpost", "ds2020"): (17869, 4498, 14339),
    ("hwu64", "metaprompter2023"): (4005, 2739, 4280),
}


def write(folder: Path, classes: int = 9, rows: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records = [{"text": f"word{c} number {i}", "label": f"class {c}"} for c in range(classes) for i in range(rows)]
    (folder / "all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    third = classes // 3
    names = [f"class {c}" for c in range(classes)]
    split = {"train": names[:third], "validation": names[third : 2 * third], "test": names[2 * third :]}
    (folder / "splits.json").write_text(json.dumps({"kind": "classes", **split}))
    return folder


@pytest.fixture
def source(tmp_path) -> EpisodeSource:
    return EpisodeSource((read_classes(write(tmp_path / "many")),), ways=2, shots=2, queries=3)


def test_an_episode_is_balanced_and_its_rows_are_of_its_classes(source):
    task = source.tasks[0]
    for split in ("train", "validation", "test"):
        for number in range(20):
            e = source.draw(split, 3, number)
            assert len(e.classes) == 2
            assert not set(e.support) & set(e.query)
            assert len(set(e.support)) == 4 and len(set(e.query)) == 6
            for part in ("support", "query"):
                for place, row in enumerate(getattr(e, part)):
                    assert task.rows(split)[row].label == e.classes[e.label(place, part)]
            assert Counter(e.label(i, "query") for i in range(6)) == {0: 3, 1: 3}
    classes = {s: {task.labels[c] for e in source.episodes(s, 0, 30) for c in e.classes} for s in ("train", "test")}
    assert classes == {"train": {"class 0", "class 1", "class 2"}, "test": {"class 6", "class 7", "class 8"}}


def test_the_same_seed_gives_the_same_episodes_whoever_draws_them(source, tmp_path):
    """In any order, on eight workers, over another object of the same rows; another seed or row gives others."""
    whole = source.hash("test", source.episodes("test", 5, 40))
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda n: source.draw("test", 5, n), reversed(range(40))))[::-1]
    assert source.hash("test", drawn) == whole
    parts = [e for first in range(0, 40, 7) for e in source.episodes("test", 5, min(7, 40 - first), first)]
    assert source.hash("test", parts) == whole
    again = EpisodeSource((read_classes(write(tmp_path / "many")),), ways=2, shots=2, queries=3)
    assert again.hash("test", again.episodes("test", 5, 40)) == whole
    assert source.hash("test", source.episodes("test", 6, 40)) != whole
    assert source.hash("validation", source.episodes("validation", 5, 40)) != whole


def test_as_many_queries_as_every_class_has_left(tmp_path):
    task = read_classes(write(tmp_path / "many"))
    fewer = task.with_(test=task.test[:-3])
    source = EpisodeSource((fewer,), ways=3, shots=2, queries=15)
    assert {len(e.query) for e in source.episodes("test", 0, 5)} == {9}
    with pytest.raises(DataError, match="no two classes of 9 rows"):
        EpisodeSource((fewer,), ways=3, shots=8).draw("test", 0, 0)
    assert not EpisodeSource((fewer,), ways=3, shots=8).has("test")


def test_leaks_of_classes_and_texts_are_refused(tmp_path):
    folder = write(tmp_path / "many")
    with (folder / "all.jsonl").open("a") as file:
        file.write(json.dumps({"text": "Word0, NUMBER 1!", "label": "class 8"}) + "\n")
    with pytest.raises(
        DataError, match=r"many: all.jsonl, row 73 of test has the text of many: all.jsonl, row 2 of train"
    ):
        read_classes(folder)
    good = write(tmp_path / "other")
    task = read_classes(good)
    mixed = task.with_(test=(*task.test, Row({"text": "new"}, task.train[0].label, (), "row x")))
    EpisodeSource((task,))
    with pytest.raises(DataError, match=r"x: .*row 1 of test has the text of other: .*row 1 of train"):
        refuse_leakage([task, task.with_(name="x", train=(), validation=(), test=task.train[:1])])
    assert not EpisodeSource((mixed,)).by_classes
    split = json.loads((good / "splits.json").read_text())
    for changed, said in (
        ({**split, "test": [*split["test"], "class 0"]}, "class in two parts"),
        ({**split, "test": ["class 77"]}, "no class 'class 77'"),
        ({"kind": "rows", **{k: split[k] for k in ("train", "validation", "test")}}, "split of rows"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=said):
            read_classes(good, str(tmp_path / "s.json"))
    with pytest.raises(ConfigError, match="one of ds2020, metaprompter2023"):
        read_classes(good, "ds2021")
    with pytest.raises(ConfigError, match="no split of 'other'"):
        read_classes(good, "ds2020")


def test_a_text_of_one_task_may_not_test_another():
    """Two tasks of a family: what one trains on, the other may not hold out, whatever case or accents it has."""
    one = Task(
        train=[{"text": f"a {i}", "label": i % 2} for i in range(6)], test=[{"text": "b", "label": 0}], name="one"
    )
    two = Task(
        train=[{"text": f"c {i}", "label": i % 2} for i in range(6)], test=[{"text": "Á, 3", "label": 1}], name="two"
    )
    with pytest.raises(DataError, match=r"two: .* of test has the text of one: .* of validation"):
        EpisodeSource((one, two))
    assert plain(Row({"text": "É-a b!"}, 0)) == "eab"
    assert plain(Row({"text": "!?"}, 0)) == "!?"


def test_an_episode_as_a_task_is_the_same_rows(source):
    episode = source.draw("test", 0, 1)
    task = source.as_task("test", episode)
    whole = source.tasks[0]
    assert task.labels == tuple(whole.labels[c] for c in episode.classes)
    assert [r.fields for r in task.train] == [whole.test[n].fields for n in episode.support]
    assert [task.labels[r.label] for r in task.test] == [whole.labels[whole.test[n].label] for n in episode.query]
    assert source.hash("test", [episode]) != source.hash("test", [Episode(0, episode.classes, episode.query, ())])


def test_a_family_keeps_every_tasks_labels_and_is_one_record():
    tasks = {
        n: Task(
            train=[{"text": f"{n} {i}", "label": ("x", n)[i % 2]} for i in range(12)],
            test=[{"text": f"{n} test", "label": n}], name=n, label_words={"x": "first", n: "second"},
        )
        for n in ("alpha", "beta")
    }  # fmt: skip
    source = EpisodeSource(tuple(tasks.values()), ways=5, shots=1, queries=2)
    drawn = source.episodes("train", 0, 30)
    assert {e.task for e in drawn} == {0, 1}
    assert source.as_task("train", next(e for e in drawn if e.task == 1)).label_words == {
        "x": ("first",),
        "beta": ("second",),
    }
    whole = joined(tasks, "both")
    assert whole.labels == ("alpha: alpha", "alpha: x", "beta: beta", "beta: x")
    assert len(whole.train) == sum(len(t.train) for t in tasks.values())
    assert {whole.labels[r.label].split(":")[0] for r in whole.train} == {"alpha", "beta"}


def test_where_the_rows_were_is_kept_and_read_again(tmp_path):
    task = read_classes(write(tmp_path / "many"))
    assert read_again(task.origin).hashes() == task.hashes()


def test_sizes_and_rows_that_cannot_be():
    task = Task(train=[{"text": f"a {i}", "label": i % 2} for i in range(6)], test=[{"text": "b", "label": 0}])
    for sizes in ({"ways": 1}, {"shots": 0}, {"queries": 0}):
        with pytest.raises(ConfigError, match="cannot be drawn"):
            EpisodeSource((task,), **sizes)
    choices = Task(
        train=[{"text": f"a {i}", "label": 0, "options": ["x", "y"]} for i in range(6)], options="options",
        test=[{"text": "b", "label": 0, "options": ["x", "y"]}],
    )  # fmt: skip
    with pytest.raises(DataError, match="options in each row"):
        EpisodeSource((choices,))


def test_named_splits_are_disjoint():
    for data in named_splits().values():
        for parts in data.values():
            names = [name for part in ("train", "validation", "test") for name in parts[part]]
            assert len(names) == len(set(names))


@pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real data; name one in FOREWORD_DATA")
@pytest.mark.parametrize(("name", "split"), COUNTS)
def test_published_splits_have_their_counts(name, split):
    """As published, less the rows that cleaning left out (3 of Reuters, 194 of HuffPost, 12 of HWU64)."""
    task = read_classes(DATA / name, split)
    assert tuple(len(task.rows(s)) for s in ("train", "validation", "test")) == COUNTS[name, split]
    classes = {s: {r.label for r in task.rows(s)} for s in ("train", "validation", "test")}
    assert tuple(map(len, classes.values())) == {
        "reuters": (15, 5, 11), "huffpost": (20, 5, 16), "hwu64": (23, 16, 25)
    }[name]  # fmt: skip
