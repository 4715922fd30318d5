"""One set of rules for cells, in training and in prediction. Run: python -m pytest tests/tasks/test_cells.py"""

import csv
import datetime
import decimal
import io
import json
import random

import numpy as np
import pandas
import pyarrow
import pytest

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError
from foreword.tasks.input_rows import items_of, row_of
from foreword.tasks.read import read_task
from foreword.tasks.task import Task
from tests.seeds import new_seed

ROWS = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(40)]
TEXTS = {  # a cell and its text; None: refused
    "str": ("a fine film", "a fine film"),
    "numpy str": (np.str_("fine"), "fine"),
    "int": (7, "7"),
    "numpy int": (np.int64(2**60 + 1), str(2**60 + 1)),
    "float": (1.5, "1.5"),
    "bool": (True, "True"),
    "numpy bool": (np.bool_(False), "False"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "date": (datetime.date(2020, 1, 2), "2020-01-02"),
    "timestamp": (pandas.Timestamp("2020-01-02 03:04"), "2020-01-02 03:04:00"),
    "datetime64": (np.datetime64("2020-01-02", "ns"), "2020-01-02 00:00:00"),
    "bytes": (b"caf\xc3\xa9", "café"),
    "bytearray": (bytearray(b"fine"), "fine"),
    "memoryview": (memoryview(b"fine"), "fine"),
    "arrow": (pyarrow.scalar("fine"), "fine"),
    "array without a dimension": (np.array("fine"), "fine"),
    "None": (None, None),
    "nan": (float("nan"), None),
    "numpy nan": (np.float32("nan"), None),
    "decimal nan": (decimal.Decimal("NaN"), None),
    "NA": (pandas.NA, None),
    "NaT": (pandas.NaT, None),
    "datetime64 NaT": (np.datetime64("NaT"), None),
    "arrow null": (pyarrow.scalar(None), None),
    "infinity": (float("inf"), None),
    "spaces": (" \n", None),
    "latin-1": (b"caf\xe9", None),
    "surrogate": ("nice \ud83d", None),
    "array": (np.array(["fine", "film"], dtype=object), None),
    "list": (["fine", "film"], None),
    "dict": ({"a": 1}, None),
    "set": ({"a"}, None),
    "timedelta": (datetime.timedelta(1), None),
    "complex": (1j, None),
    "object": (object(), None),
}


def artefact(*fields: str, labels: tuple[str, ...] = ("a", "b")) -> Artefact:
    template = Template.parse(" ".join(f"{{{name}}}" for name in fields) + " {mask}")
    form = Format(template, labels, tuple((label,) for label in labels))
    return Artefact(
        HardPrompt.empty(),
        form,
        "manual",
        {},
        0,
        {"name": "x", "kind": "masked"},
        {},
        fields=fields,
    )


@pytest.mark.parametrize("case", TEXTS)
def test_training_and_prediction_read_a_cell_alike(case: str) -> None:
    cell, text = TEXTS[case]
    one, pair = artefact("text"), artefact("text", "other")
    calls = [
        lambda: row_of(one, {"text": cell}, "text 7").fields["text"],
        lambda: row_of(pair, ["fine", cell], "text 7").fields["other"],
        lambda: row_of(pair, {"text": cell, "other": "x"}, "text 7").fields["text"],
    ]
    if case not in ("array", "list", "dict"):  # which are a row's fields
        calls.append(lambda: row_of(one, cell, "text 7").fields["text"])
    for call in calls:
        if text is None:
            with pytest.raises(DataError, match="text 7"):
                call()
        else:
            assert call() == text
    rows = [*ROWS[:6], {"text": cell, "label": "a"}]
    splits = {"train": rows, "validation": ROWS[6:8], "test": ROWS[8:9]}
    if text is None:
        with pytest.raises(DataError, match=r"mine \(train\), row 7: field 'text'"):
            Task(**splits, name="mine")
    else:
        assert Task(**splits).train[-1].fields["text"] == text


def test_tables_are_read_by_their_columns_and_columns_by_their_items() -> None:
    frame = pandas.DataFrame({"label": ["good", "bad"], "text": ["fine film", "dull film"]})
    one = artefact("text")
    sources = [frame, pyarrow.Table.from_pandas(frame), pyarrow.Table.from_pandas(frame).to_batches()[0]]
    sources += [frame["text"], frame["text"].to_numpy(), pyarrow.array(frame["text"]), (t for t in frame["text"])]
    for source in sources:
        rows = [row_of(one, item, "x") for item in items_of(source)]
        assert [row.fields["text"] for row in rows] == ["fine film", "dull film"], type(source)
    for source in ("fine", b"fine", {"text": "fine"}, None, 5, {"fine"}, np.array("fine"), object()):
        with pytest.raises(ConfigError, match="predict takes a list"):
            items_of(source)
    with pytest.raises(DataError, match="'text' twice"):
        items_of(pandas.concat([frame, frame["text"]], axis=1))
    with pytest.raises(DataError, match="has 3 items, and the artefact reads a, b"):
        row_of(artefact("a", "b"), ["x", "y", "z"], "text 1")
    with pytest.raises(DataError, match="text 1 lacks b"):
        row_of(artefact("a", "b"), ["x"], "text 1")


def test_rows_that_have_names_are_read_by_them_whatever_their_order() -> None:
    frame = pandas.DataFrame({"b": ["second"] * 8, "label": ["x", "y"] * 4, "a": [f"first {n}" for n in range(8)]})
    pair = artefact("a", "b")
    for columns in (["b", "a"], ["a", "b"], ["b", "label", "a"]):
        some = frame[columns]
        series = [row for _, row in some.iterrows()]
        tuples = list(some.itertuples(index=False))
        structured = list(some.to_records(index=False))
        for rows in (series, tuples, structured):
            read = [dict(row_of(pair, row, "text 1").fields) for row in rows]
            assert read == [{"a": f"first {n}", "b": "second"} for n in range(8)], (columns, type(rows[0]))
    # A Series without names is a sequence.
    assert row_of(pair, pandas.Series(["x", "y"]), "text 1").fields == {"a": "x", "b": "y"}
    with pytest.raises(DataError, match="'a' twice"):
        row_of(pair, pandas.Series(["x", "y", "z"], index=["a", "b", "a"]), "text 1")
    for rows in ([row for _, row in frame.iterrows()], list(frame.itertuples(index=False)), frame.to_records()):
        task = Task(rows, text=("a", "b"))
        assert all(row.fields["b"] == "second" for row in task.train) and len(task.train) > 0


def test_a_data_set_in_memory_and_a_streamed_one_keep_their_label_names() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ant"])}
    )
    columns = {"text": [f"t {n}" for n in range(30)], "label": [0, 1, 1] * 10}
    whole = datasets.Dataset.from_dict(columns, features=features)
    streamed = whole.to_iterable_dataset()
    assert Task(streamed).labels == Task(whole).labels == ("zebra", "ant")
    assert Task(streamed).hashes() == Task(whole).hashes() == Task(whole.with_format("torch")).hashes()
    assert [row["text"] for row in items_of(streamed)] == columns["text"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([2**53, 2**53 + 1], (str(2**53), str(2**53 + 1))),
        (["①", "②"], ("①", "②")),
        (["infinity", "nan"], ("infinity", "nan")),
        (["--1", "-1"], ("--1", "-1")),
        (["٣", "٢"], ("٢", "٣")),
        ([1.0, "2"], ("1", "2")),
        ([True, False], ("False", "True")),
        ([b"yes", "no"], ("no", "yes")),
        ([decimal.Decimal(1), decimal.Decimal("1.5")], ("1", "1.5")),
        ([10**30, 10**30 + 1], (str(10**30), str(10**30 + 1))),
        ([datetime.date(2020, 1, 2), datetime.date(2021, 1, 2)], ("2020-01-02", "2021-01-02")),
    ],
)
def test_labels_are_what_they_are(labels, names) -> None:
    task = Task([{"text": f"t {n}", "label": labels[n % 2]} for n in range(30)])
    assert task.labels == names


@pytest.mark.parametrize(
    "label", [float("inf"), "half \ud83d", ["a"], {"a": 1}, float("nan"), 1j, 10**5000], ids=range(7)
)
def test_labels_that_are_none_name_their_row(label) -> None:
    with pytest.raises(DataError, match=r"mine \(train\), row 3"):
        Task(train=[*ROWS[:2], {"text": "x", "label": label}], validation=ROWS[3:5], test=ROWS[5:7], name="mine")


def test_names_of_columns_are_text() -> None:
    frame = pandas.DataFrame([[f"t {n}", "ab"[n % 2]] for n in range(30)])
    assert Task(frame, text="0", label="1").fields == ("0",)
    for columns, said in (([0, "0"], "one as text"), ([("a", 1), 1], "text or whole numbers"), ([None, 1], "named")):
        odd = pandas.DataFrame([["x", "y"]] * 3, columns=pandas.Index(columns, dtype=object, tupleize_cols=False))
        with pytest.raises(DataError, match=said):
            Task(odd, text="0", label="1")
    with pytest.raises(ConfigError, match="Task: text is 0; it must be text or a list of text or None"):
        Task(frame, text=0)


def test_a_list_is_alternatives_and_a_text_is_one_answer(tmp_path) -> None:
    whole = '["Ana", "Bo"]'
    for cell, targets in (
        (whole, (whole,)),
        (["Ana", "Bo"], ("Ana", "Bo")),
        (("Ana", "Bo"), ("Ana", "Bo")),
        (np.array(["Ana", "Bo"]), ("Ana", "Bo")),
        ("[1, 2]", ("[1, 2]",)),
        ('{"a": 1}', ('{"a": 1}',)),
        (5, ("5",)),
        ([5, 6.5], ("5", "6.5")),
    ):
        task = Task(train=[{"text": f"t {n}", "output": cell} for n in range(8)], test=[{"text": "x", "output": "y"}])
        assert {row.targets for row in task.train} == {targets}
    rows = [{"text": f"t {n}", "output": whole} for n in range(8)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row.targets for row in read_task(tmp_path / "x.jsonl", split="train").train} == {(whole,)}
    pyarrow_rows = pyarrow.table({"text": ["a", "b"], "output": [["Ana", "Bo"], ["Cy"]]})
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow_rows, tmp_path / "x.parquet")
    assert [row.targets for row in read_task(tmp_path / "x.parquet", split="test").test] == [("Ana", "Bo"), ("Cy",)]
    with pytest.raises(DataError, match="give the answer as text"):
        Task(train=[{"text": "a", "output": {"a": 1}}], test=[{"text": "x", "output": "y"}])


def written(rows, path):
    """The same rows as CSV, with lists as JSON, and as JSONL."""
    (path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    (path / "x.csv").write_text(file.getvalue())


@pytest.mark.parametrize("options", [["yes", "no"], [3, 4], ["it's", 'a "b"']], ids=["texts", "numbers", "quotes"])
def test_options_are_split_alike_in_every_format(tmp_path, options) -> None:
    rows = [{"q": f"question {n}", "options": options, "label": n % 2} for n in range(60)]
    frame = pandas.DataFrame(rows)
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "x.parquet")
    frame.assign(options=json.dumps(options)).to_csv(tmp_path / "x.csv", index=False)
    frame.assign(options=json.dumps(options)).to_json(tmp_path / "x.json", orient="records")
    sources = [read_task(tmp_path / f"x.{kind}", options="options") for kind in ("jsonl", "parquet", "csv", "json")]
    sources += [Task(rows, options="options"), Task(frame, options="options")]
    splits = [
        [[(row.text(), row.label) for row in t.rows(s)] for s in ("train", "validation", "test")] for t in sources
    ]
    assert all(one == splits[0] for one in splits) and all(splits[0])


def test_options_that_are_numbers_have_one_reading_for_the_column(tmp_path) -> None:
    """Planted: the right option is known; a label is its position or its text, in CSV and in JSONL."""
    seed = new_seed(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for by in ("position", "text"):
        rows, right = [], {}
        for number in range(24):
            options = rng.sample(["1", "2", "3", "4"], 4)
            at = number % 4
            right[f"q {number}"] = options[at]
            rows.append({"q": f"q {number}", "options": options, "label": at if by == "position" else int(options[at])})
        rows[0] |= {"options": ["1", "2", "3", "4"], "label": 0 if by == "position" else 4}
        right["q 0"] = "1" if by == "position" else "4"
        written(rows, tmp_path)
        for suffix in ("csv", "jsonl"):
            task = read_task(tmp_path / f"x.{suffix}", options="options", text="q")
            found = {r.fields["q"]: r.options[r.label] for s in ("train", "validation", "test") for r in task.rows(s)}
            assert found == right, (by, suffix)
            assert any("label' are read as" in note and by[:4] in note for note in task.notes)
    doubtful = [{"q": f"q {n}", "options": ["1", "2", "3", "0"], "label": n % 4} for n in range(8)]
    written(doubtful, tmp_path)
    for suffix in ("csv", "jsonl"):
        with pytest.raises(DataError, match="may be the position of"):
            read_task(tmp_path / f"x.{suffix}", options="options", text="q")
    mixed = [{"q": f"q {n}", "options": ["x", "y"], "label": (0, "y")[n % 2]} for n in range(20)]
    assert all(r.options[r.label] == "xy"[int(r.fields["q"][2:]) % 2] for r in Task(mixed, options="options").train)


def test_files_of_every_encoding_with_long_cells(tmp_path) -> None:
    rows = [{"text": f"käse ① {n}", "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = read_task(tmp_path / "a.jsonl").hashes()
    plain = "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "b.csv").write_text(plain, encoding=encoding)
        assert read_task(tmp_path / "b.csv").hashes() == wanted, encoding
    long = "word " * 40_000
    (tmp_path / "c.csv").write_text("text,label\n" + "".join(f"{long}{n},{'ab'[n % 2]}\n" for n in range(9)))
    assert len(read_task(tmp_path / "c.csv", split="test").test[0].fields["text"]) == len(long) + 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "text,label,text\na,b,c\n", "line 1 has the column 'text' twice"),
        ("x.jsonl", '{"text": "a", "text": "b", "label": "c"}\n', "line 1 is not JSON .*'text' twice"),
        ("x.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON .*nested too deeply"),
        ("x.jsonl", '{"text": ' + "9" * 5000 + "}\n", "thousands of digits"),
        ("x.json", "[" * 100_000, "nested too deeply"),
        ("x.jsonl", '{"text": "\\ud83d", "label": "a"}\n{"text": "b", "label": "b"}\n', "row 1: field 'text' has half"),
        ("x.jsonl", '{"\\ud83d": "a", "label": "a"}\n', "name of column"),
    ],
)
def test_files_that_would_lose_something_name_the_place(tmp_path, name, content, said) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_task(tmp_path / name)


def test_binary_and_null_cells_of_parquet(tmp_path) -> None:
    import pyarrow.parquet as parquet

    labels, path = [*"abababab"], tmp_path / "x.parquet"
    texts = [f"t {n}" for n in range(8)]
    parquet.write_table(pyarrow.table({"text": [text.encode() for text in texts], "label": labels}), path)
    assert [row.fields["text"] for row in read_task(path, split="test").test] == texts
    for cell in (b"\xff", None):
        table = pyarrow.table({"text": pyarrow.array([b"a"] * 7 + [cell]), "label": labels})
        parquet.write_table(table, path)
        with pytest.raises(DataError, match="row 8: field 'text'"):
            read_task(path, split="test")


def test_a_regression_needs_two_labels() -> None:
    from foreword.methods.baselines.regression import require_classes

    task = Task(train=ROWS[:20], validation=ROWS[20:30], test=ROWS[30:])
    require_classes("bag-of-words", task)
    for rows in (tuple(row for row in task.train if row.label == 0), ()):
        with pytest.raises(DataError, match="two labels or more"):
            require_classes("bag-of-words", task.with_(train=rows))


def test_a_list_in_a_csv_cell_is_told(tmp_path) -> None:
    (tmp_path / "x.csv").write_text("text,output\n" + "".join(f't {n},"[""Ana"", ""Bo""]"\n' for n in range(30)))
    task = read_task(tmp_path / "x.csv")
    assert task.train[0].targets == ("Ana", "Bo")
    assert any("read as alternatives" in line for line in task.guesses)
