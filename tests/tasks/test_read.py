"""Tasks from files, folders and names. Run: python -m pytest tests/tasks/test_read.py"""

import dataclasses
import json
from pathlib import Path

import pytest

from foreword.errors import ConfigError, DataError
from foreword.tasks.read import find_tasks, read_task
from foreword.tasks.task import Task

ROWS = [{"text": f'line {i}, "quoted"\nand more {{x}}', "label": "no yes".split()[i % 2]} for i in range(100)]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_format_gives_the_same_task(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame(ROWS)
    write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    hashes = [read_task(tmp_path / f"a.{s}").hashes() for s in ("jsonl", "json", "csv", "tsv", "parquet")]
    assert all(h == hashes[0] for h in hashes)
    assert len({*hashes[0].values()}) == 3


def test_a_folder_with_named_splits(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", ROWS[:60])
    write_lines(tmp_path / "dev.jsonl", ROWS[60:80])
    write_lines(tmp_path / "test.jsonl", ROWS[80:])
    task = read_task(tmp_path)
    assert [len(task.train), len(task.validation), len(task.test)] == [60, 20, 20]
    assert task.test[0].where == "test.jsonl, row 1"
    write_lines(tmp_path / "validation.jsonl", ROWS[60:80])
    with pytest.raises(DataError, match=r"validation\.jsonl and dev\.jsonl, both the validation split; keep one"):
        read_task(tmp_path)


def test_splits_by_row_numbers_and_by_classes(tmp_path: Path) -> None:
    write_lines(tmp_path / "all.jsonl", ROWS)
    splits = {"kind": "rows", "train": [*range(10, 90)], "validation": [*range(10)], "test": [99, 91, 92]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    task = read_task(tmp_path)
    assert [len(task.train), len(task.validation), len(task.test)] == [80, 10, 3]
    assert task.test[0].where == "all.jsonl, row 100"
    assert task.test[0].fields["text"] == ROWS[99]["text"]
    (tmp_path / "splits.json").write_text(json.dumps({"kind": "classes", "train": ["no"], "test": ["yes"]}))
    task = read_task(tmp_path)
    assert task.labels == ("no", "yes"), "all classes make one closed set"
    assert {row.label for row in task.test} == {0, 1}
    (tmp_path / "splits.json").write_text(json.dumps(splits | {"test": [100]}))
    with pytest.raises(DataError, match=r"test names rows outside of 0 to 99"):
        read_task(tmp_path)


def test_a_file_can_be_one_split_whole_with_fixed_labels(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", ROWS[1::2])
    task = read_task(path, split="test", labels=("yes", "maybe", "no"))
    assert (len(task.train), len(task.test)) == (0, 50)
    assert {task.labels[row.label] for row in task.test} == {"yes"}


def test_known_folder_names_bring_templates_and_words(tmp_path: Path) -> None:
    folder = tmp_path / "sst2"
    folder.mkdir()
    write_lines(folder / "all.jsonl", [dict(r, label=["negative", "positive"][i % 2]) for i, r in enumerate(ROWS)])
    found = read_task(folder).format("masked")
    assert found.words == (("terrible",), ("wonderful",))
    own = read_task(folder, template="{text} {mask}", label_words={"negative": "bad"}).format("masked")
    assert (own.template.source, own.words) == ("{text} {mask}", (("bad",), ("positive",)))


BAD = {
    "broken.jsonl": ('{"text": "a", "label": "x"}\n\n{"text": \n', r"broken\.jsonl, line 3 is not JSON .*one object"),
    "list.jsonl": ("[1]\n", r"line 1 is a JSON list"),
    "broken.json": ('[{"text": 1},\n', r"line \d is not JSON"),
    "object.json": ('{"text": 1}', r"not a JSON list of objects"),
    "short.csv": ("text,label\na,x\nb\n", r"short\.csv, line 3 has not as many columns as the first line \(2\)"),
    "long.csv": ("text,label\na,x\nb,y,z\n", r"line 3 has not as many columns"),
    "quote.csv": ('text,label\n"a"b,x\n', r"line 2 is not CSV"),
    "bad.parquet": ("not parquet", r"not a Parquet file"),
    "notes.txt": ("a", r"notes\.txt is of no known kind; give a file that ends in \.jsonl"),
    "empty.jsonl": ("", r"empty\.jsonl holds no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_task(tmp_path / name)


def test_blank_lines_do_not_shift_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "gap.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n\n{"text": "", "label": "y"}\n')
    with pytest.raises(DataError, match=r"gap\.jsonl, row 3: field 'text' is empty"):
        read_task(path)


def test_bad_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; give a folder, a file, hf:owner/name .*builtin:"):
        read_task(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither train\.jsonl"):
        read_task(tmp_path)
    with pytest.raises(ConfigError, match=r"no embedded task 'x'; there are sentiment, intents"):
        read_task("builtin:x")
    with pytest.raises(ConfigError, match="names no data set"):
        read_task("hf:")
    with pytest.raises(DataError, match=r"hf:nobody/nothing cannot be loaded .* check owner/name"):
        read_task("hf:nobody/nothing")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_task(latin)
    secret = write_lines(tmp_path / "secret.jsonl", ROWS)
    with pytest.raises(ConfigError, match="no split 'dev'"):
        read_task(secret, split="dev")


def test_a_hub_data_set_is_read_through_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` takes a local folder too, so this needs no network; label names and splits are the source's."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "topic": datasets.ClassLabel(names=["x", "y"]),
            "label": datasets.ClassLabel(names=["zebra", "ant"]),
        }
    )
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        columns = {"sentence": [f"{name} {i}" for i in range(30)], "topic": [0] * 30, "label": [0, 1] * 15}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / f"{name}.parquet")
    task = read_task(f"hf:{tmp_path}/data", text="sentence")
    assert task.labels == ("zebra", "ant")
    assert len(task.train) + len(task.validation) == 30
    assert [row.label for row in task.test[:4]] == [0, 1, 0, 1]
    assert task.test[0].where.endswith("test, row 1")


def described(path, **said):
    path.write_text(json.dumps(said))


def test_a_description_beside_a_file_or_in_a_folder_says_what_is_not_given(tmp_path):
    rows = [{"said": f"words {n}", "is": ("yes", "no")[n % 2], "other": "x"} for n in range(40)]
    write_lines(tmp_path / "a.jsonl", rows)
    described(tmp_path / "a.task.json", text="said", label="is", template="{said} {mask}", label_words={"yes": "sure"})
    task = read_task(tmp_path / "a.jsonl")
    assert task.fields == ("said",)
    assert task.format("masked").template.source == "{said} {mask}"
    assert task.format("masked").words[task.labels.index("yes")] == ("sure",)
    given = read_task(tmp_path / "a.jsonl", text="other", template="{other} so {mask}")
    assert given.fields == ("other",), "what is given goes before what is described"
    assert given.format("masked").template.source == "{other} so {mask}"
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "all.jsonl", rows)
    described(tmp_path / "b" / "task.json", text="said", label="is", labels=["yes", "no"])
    assert read_task(tmp_path / "b").labels == ("yes", "no")


@pytest.mark.parametrize("said", ["{", "[]", '{"lable": "x"}'])
def test_a_description_that_is_none_is_told(tmp_path, said):
    write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": "y"}])
    (tmp_path / "a.task.json").write_text(said)
    with pytest.raises(DataError, match=r"a\.task\.json"):
        read_task(tmp_path / "a.jsonl")


def test_tasks_of_a_folder_are_its_files_and_folders(tmp_path):
    write_lines(tmp_path / "b.jsonl", [])
    (tmp_path / "a.csv").write_text("text,label\n")
    (tmp_path / "c").mkdir()
    for name in ("b.task.json", "README.md", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert {name: path.name for name, path in find_tasks(tmp_path).items()} == {"a": "a.csv", "b": "b.jsonl", "c": "c"}
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="both the task 'c'"):
        find_tasks(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        find_tasks(tmp_path / "a.csv")


def test_what_is_given_of_an_embedded_task_has_effect_or_is_refused():
    plain = read_task("builtin:sentiment")
    task = read_task(
        "builtin:sentiment", name="mine", template="{text} So {mask}.", label_words={plain.labels[0]: "bad"}
    )
    assert (task.name, task.template, task.label_words) == ("mine", "{text} So {mask}.", {plain.labels[0]: ("bad",)})
    assert read_task("builtin:sentiment", text="text", labels=list(plain.labels)).hashes() == plain.hashes()
    for given in ({"text": "review"}, {"labels": ["x", "y"]}, {"metric": "bleu"}, {"split": "test"}, {"case": "lower"}):
        for place in ("builtin:sentiment", "facts:countries:capital"):
            with pytest.raises(ConfigError, match=f"{place} is what it is: {next(iter(given))}="):
                read_task(place, **given)


def test_shuffled_labels_stay_as_many_a_label_and_rows_without_one_stay_without():
    rows = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(40)]
    assert Task(train=rows, test=rows[:4]).few_shot(3).relabel_shuffled(1).shots == 3
    choices = [{"text": f"t{n}", "options": ["x", "y"], "label": 0} for n in range(6)]
    task = Task(train=choices, test=[{"text": "u", "options": ["x", "y"]}], options="options")
    bare = task.with_(train=tuple(dataclasses.replace(row, label=None) for row in task.train))
    assert {row.label for row in bare.relabel_shuffled(1).train} == {None}
