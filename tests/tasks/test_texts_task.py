"""Tasks whose answers are texts. Run: python -m pytest tests/tasks/test_texts_task.py"""

import json

import pytest

from foreword.core.format import Decoding
from foreword.errors import ConfigError, DataError
from foreword.tasks.input_rows import row_of
from foreword.tasks.read import read_task
from foreword.tasks.read_again import read_again
from foreword.tasks.task import Task

ROWS = [{"q": f"q{n}", "answer": [f"a{n}", "x"], "reasoning": f"r{n}" if n % 2 else ""} for n in range(60)]


def test_answers_are_found_where_there_are_no_labels():
    task = Task(ROWS)
    assert (task.answers, task.metric, task.labels, task.fields) == ("text", "exact_match", (), ("q",))
    row = task.train[0]
    assert row.label is None and row.targets[1] == "x" and row.options == ()
    assert {bool(r.reasoning) for r in task.train} == {True, False}
    assert "answers in text (exact match)" in task.describe()
    for column in ("targets", "output"):
        assert Task([{"q": r["q"], column: r["answer"][0]} for r in ROWS]).train[0].targets == (row.targets[0],)
    numbers = Task([{"q": f"q{n}", "output": n} for n in range(30)], metric="number")
    assert numbers.train[0].targets[0].isdigit() and numbers.metric == "number"
    assert Task([{**r, "gold": "z"} for r in ROWS], targets="gold", text="q").train[0].targets == ("z",)


def test_labels_and_options_stay_what_they_were():
    labelled = [{"q": f"q{n}", "label": "ab"[n % 2], "answer": "z"} for n in range(40)]
    task = Task(labelled, text="q")
    assert (task.answers, task.metric) == ("labels", None)
    plain = Task([{"q": r["q"], "label": r["label"]} for r in labelled])
    assert task.hashes() == plain.hashes()
    assert Task(labelled, text="q", label="answer", labels=["z", "y"]).answers == "labels"
    options = [{"q": f"q{n}", "label": 0, "choices": ["x", "y"]} for n in range(40)]
    assert Task(options, options="choices").answers == "options"


def test_hashes_see_targets_and_reasoning():
    base = Task(train=ROWS, test=ROWS[:5]).hashes()
    other = [{**ROWS[0], "answer": ["b", "x"]}, *ROWS[1:]]
    thought = [ROWS[0], {**ROWS[1], "reasoning": "else"}, *ROWS[2:]]
    for rows in (other, thought):
        assert Task(train=rows, test=ROWS[5:9]).hashes()["train"] != Task(train=ROWS, test=ROWS[5:9]).hashes()["train"]
    assert Task(train=ROWS, test=[{**r, "answer": "no"} for r in ROWS[:5]]).hashes()["test"] != base["test"]


def test_shots_limits_and_shuffles_keep_rows_whole():
    task = Task(train=ROWS, test=ROWS[:9])
    few = task.few_shot(7, seed=2)
    assert len(few.train) == len(few.validation) == 7 and few.shots == 7
    mixed = task.relabel_shuffled(1)
    assert [r.fields["q"] for r in mixed.train] == [r.fields["q"] for r in task.train]
    assert sorted(r.targets for r in mixed.train) == sorted(r.targets for r in task.train)
    assert sum(a.targets == b.targets for a, b in zip(mixed.train, task.train, strict=True)) < 10
    assert mixed.test == task.test


def test_the_default_decoding_cuts_no_right_answer():
    task = Task(train=[{"q": "a", "answer": "é" * 5}], test=[{"q": "b", "answer": "x"}])
    form = task.with_(validation=()).format("causal")
    assert form.decoding == Decoding(12, stop_strings=("\n",))
    assert form.template.source == "Q: {q|shorten}\nAnswer: {answer}" and form.answers == "text"
    lines = Task(train=[{"input": "a", "output": "x\ny"}], test=[{"input": "b", "output": "x"}]).with_(validation=())
    assert lines.format("causal").decoding.stop_strings == ()
    assert lines.format("causal").template.source.endswith("Output: {answer}")
    assert lines.format("causal", chat=True).template.chat
    with pytest.raises(ConfigError, match="masked model cannot write; use a causal model"):
        task.format("masked")
    labelled = Task([{"q": f"q{n}", "label": "ab"[n % 2]} for n in range(40)])
    with pytest.raises(ConfigError, match="are labels, which are scored and not written"):
        labelled.format("causal", decoding=Decoding())


def test_a_folder_its_listing_and_its_description(tmp_path):
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    (folder / "test.jsonl").write_text(json.dumps({"q": "t", "answer": "5"}) + "\n")
    assert read_task(folder).metric == "exact_match"
    (tmp_path / "tasks.json").write_text(json.dumps({"sums": {"metric": "f1"}, "other": {"metric": "contains"}}))
    task = read_task(folder)
    assert task.metric == "f1"
    assert read_again(task.origin).hashes() == task.hashes()
    (folder / "task.json").write_text(json.dumps({"metric": "number", "targets": "answer"}))
    assert read_task(folder).metric == "number"
    assert read_task(folder, metric="contains").metric == "contains"
    (folder / "task.json").write_text(json.dumps({"metric": "meteor"}))
    with pytest.raises(DataError, match='metric is "meteor"; give one of exact_match, f1'):
        read_task(folder)
    (folder / "task.json").unlink()
    (tmp_path / "tasks.json").write_text(json.dumps({"sums": {"metric": "meteor"}}))
    with pytest.raises(DataError, match="the metric of sums is 'meteor'"):
        read_task(folder)
    csv = tmp_path / "sums.csv"
    csv.write_text("q,output\n" + "".join(f'q{n},"[""{n}"", ""x""]"\n' for n in range(30)))
    assert read_task(csv).train[0].targets[1] == "x"


def test_several_rows_of_one_source_are_one_row_with_all_references(tmp_path):
    rows = [{"mr": f"name[{n}]", "ref": f"{n} is here. {way}"} for n in range(12) for way in ("Go.", "Come.", "Go.")]
    task = Task(train=rows, test=rows[:6], text="mr", targets="ref", metric="bleu")
    assert [len(task.train), len(task.test)] == [12 - len(task.validation), 2]
    assert task.test[0].targets == ("0 is here. Go.", "0 is here. Come.")
    assert "6 test texts of 2 sources" in " ".join(task.notes)
    apart = Task(train=rows, test=rows[:6], text="mr", targets="ref")  # single answers stay as they are
    assert len(apart.test) == 6
    file = tmp_path / "mr.csv"
    file.write_text("mr,ref\n" + "".join(f'"{r["mr"]}","{r["ref"]}"\n' for r in rows))
    read = read_task(file, text="mr", targets="ref", metric="bleu", case="lower", slots="literal")
    assert sum(len(read.rows(s)) for s in ("train", "validation", "test")) == 12
    assert read_again(read.origin).hashes() == read.hashes() and read_again(read.origin).judge == read.judge
    (tmp_path / "mr.task.json").write_text(json.dumps({"metric": "chrf", "case": "uncased", "targets": "ref"}))
    assert read_task(file).judge.to_json() == {"metric": "chrf", "case": "uncased"}
    (tmp_path / "mr.task.json").write_text(json.dumps({"metric": "chrf", "case": "shouted", "targets": "ref"}))
    with pytest.raises(DataError, match='case is "shouted"; give one of kept, lower, uncased'):
        read_task(file)


def test_bad_answers_are_named():
    for bad in ([], None, "", [""], ["a", None], {"a": 1}, [["a"]]):
        with pytest.raises(DataError, match=r"row 2: 'answer' is .*; give the answer as text, or a list of answers"):
            Task(train=[ROWS[0], {"q": "b", "answer": bad}], test=ROWS[:2])
    with pytest.raises(DataError, match=r"answers in text \(column 'answer'\) and options were both asked for"):
        Task([{**r, "choices": ["x", "y"]} for r in ROWS], targets="answer", options="choices")
    with pytest.raises(ConfigError, match="are labels, which no metric of texts fits"):
        Task([{"q": f"q{n}", "label": "ab"[n % 2]} for n in range(40)], metric="f1")
    unlabelled = Task(train=ROWS, test=[{"q": "a", "answer": []}, {"q": "b", "answer": None}])
    assert "the test rows have no labels and are left out" in unlabelled.notes


def test_a_text_needs_no_options_to_be_answered():
    from foreword.methods.registry import train
    from foreword.models.tiny import tiny

    made = train(tiny("causal"), Task(train=ROWS, test=ROWS[:2]).with_(validation=()), "manual").artefact
    assert row_of(made, "what?", "TEXT 1").fields == {"q": "what?"}
