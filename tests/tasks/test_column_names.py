"""A column of any name is a field like any other. Run: python -m pytest tests/tasks/test_column_names.py"""

import csv
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword import train
from foreword.core.template import Field, Literal, Template, written
from foreword.errors import ConfigError
from foreword.inference.predictor import open_artefact
from foreword.models.load import load
from foreword.tasks.formats import generic_chat, generic_template, text_template
from foreword.tasks.paraphrases import paraphrases
from foreword.tasks.read import read_task
from foreword.tasks.task import Task
from tests.serving.running import client, server

NAMES = [
    "answer", "mask", "soft", "demos", "decoder", "field", "options", "label_text", "What's new?", 'say "x"', "{a}",
    "a:b", "soft:3", "a|shorten", " padded ", "", "two\nlines", "Ünï 名前", "back\\slash", "'", "<think>", "field:'x'",
]  # fmt: skip
KINDS = ("causal", "masked")


@pytest.fixture(scope="module")
def models():
    return {"causal": load("foreword-tiny-causal"), "masked": load("foreword-tiny")}


def rows(*names):
    return [
        {**{name: f"{word} {n} {i}" for i, name in enumerate(names)}, "label": word}
        for n in range(6)
        for word in ("good", "bad")
    ]


@settings(max_examples=40, deadline=None, database=None)
@given(name=st.text(), shorten=st.booleans())
def test_any_name_survives_in_a_template(name, shorten):
    part = Field(name, shorten)
    found = Template.parse(f"a {written(part)}.{{answer}}")
    assert found.parts[:2] == (Literal("a "), part)
    assert Template.parse(found.source) == found
    for source in (generic_template("causal", [name, "z"], ["x"]), text_template([name, "z"])):
        assert Template.parse(source).fields[:1] == (name,)
    assert Template.parse(generic_chat([name], ["x"])).fields == (name,)
    for one in (*paraphrases("none", [name]), *paraphrases("none", [name, name + "2", "z"])):
        assert Template.parse(one).fields[:1] == (name,)


def test_plain_names_are_written_as_before():
    for name in ("text", "text_a", "two words", "x?", "field", "é"):
        assert written(Field(name, True)) == "{" + name + "|shorten}"
    for source in ("{field}", "{field|shorten}", "{ field : 'a b' | shorten }", '{field:"it\'s"}'):
        assert len(Template.parse(source).fields) == 1


def test_a_reserved_name_tells_its_escape():
    for name in ("soft", "demos|shorten", "answer|shorten"):
        with pytest.raises(ConfigError, match=r"\{field:'"):
            Template.parse("{" + name + "} {answer}")


@pytest.mark.parametrize("name", NAMES)
def test_a_column_is_read_from_a_file(name, tmp_path):
    """Two columns of text, one of them of an odd name, from CSV and JSONL."""
    records = rows(name, "other")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for file in ("a.csv", "b.jsonl"):
        task = read_task(str(tmp_path / file), text=[name, "other"])
        assert task.fields == (name, "other")
        assert {row.fields[name] for row in (*task.train, *task.validation, *task.test)} == {r[name] for r in records}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_trained_saved_loaded_and_asked(name, kind, models, tmp_path):
    """The probabilities are those of the same rows under a plain name, with the title that the name gives."""
    lm = models[kind]
    odd, plain = Task(rows(name), text=name, name="t"), Task(rows("text"), text="text", name="t")
    template = "It says {text|shorten} so {mask}" if kind == "masked" else "It says {text|shorten} so {answer}"
    wanted = train(lm, plain, "manual", form=plain.format(lm.kind, template)).predict(["good 1", "bad 2"])
    form = odd.format(lm.kind, template.replace("{text|shorten}", written(Field(name, True))))
    made = train(lm, odd, "manual", form=form)
    made.save(tmp_path / "x")
    opened = open_artefact(tmp_path / "x", lm)
    for prompted in (made, opened):
        assert [p.probabilities for p in prompted.predict([{name: "good 1"}, {name: "bad 2"}])] == [
            p.probabilities for p in wanted
        ]
    generic = train(lm, odd, "manual")  # the template that is made for it
    assert generic.artefact.format.template.fields == (name,)


@pytest.mark.parametrize("method", ["few-shot", "prompt-tuning", "bag-of-words", "few-shot-knn"])
def test_methods_take_every_name(method, models, tmp_path):
    lm = models["causal"]
    names = ["answer", "What's {new}?", ""]
    task = Task(rows(*names), text=names, name="t")
    options: dict[str, Any] = {"steps": 1, "length": 2} if method == "prompt-tuning" else {}
    made = train(lm, task, method, **options)
    made.save(tmp_path / "x")
    row = {"answer": "good 1", "What's {new}?": "x", "": "y"}
    opened = open_artefact(tmp_path / "x", lm)
    assert opened.predict([row])[0].probabilities == made.predict([row])[0].probabilities


def test_a_field_called_options_beside_options(models):
    """The row's own options keep a name of their own."""
    records = [{"options": f"q {n}", "choices": ["yes", "no"], "label": n % 2} for n in range(12)]
    task = Task(records, text="options", options="choices", name="t")
    made = train(models["causal"], task, "manual")
    row = {"options": "q 1", "row_options": ["yes", "no"]}
    assert set(made.predict([row])[0].probabilities) == {"yes", "no"}
    with pytest.raises(ValueError, match="lacks row_options"):
        made.predict([{"options": ["yes", "no"]}])


def test_a_server_takes_every_name(models, tmp_path):
    lm = models["causal"]
    names = ["answer", "What's {new}?", "options", ""]
    task = Task(rows(*names), text=names, name="t")
    made = train(lm, task, "prompt-tuning", steps=1, length=2)
    made.save(tmp_path / "store" / "artefacts" / "odd")
    row = {"answer": "good 1", "What's {new}?": "x", "options": "z", "": "y"}
    with server(tmp_path / "store", lm) as own, client(own) as web:
        found = web.post("/v1/classify", json={"model": "odd", "input": [row]})
        assert found.status_code == 200, found.text
        shown = found.json()["data"][0]["probabilities"]
        assert shown == pytest.approx(made.predict([row])[0].probabilities, abs=1e-5)


def test_json_of_the_command_line_keeps_the_fields(models, tmp_path, capsys):
    from foreword.cli.main import run

    task = Task(rows("probabilities", "label_"), text=["probabilities", "label_"], name="t")
    train(models["causal"], task, "manual").save(tmp_path / "x")
    row = {"probabilities": "good 1", "label_": "x"}
    assert run(["predict", str(tmp_path / "x"), "--json", json.dumps(row)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fields"] == row
    assert set(told["probabilities"]) == {"good", "bad"}
