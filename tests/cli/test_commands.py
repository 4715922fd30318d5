"""What the commands print, and that they agree with each other. Run: python -m pytest tests/cli/test_commands.py"""

import json
import re
import shutil
import subprocess
import sys

import pytest

TINY = ("--model", "foreword-tiny")


def test_train_writes_what_show_shows(foreword, data, tmp_path):
    out = tmp_path / "new" / "prefix"
    options = ("-o", "length=4", "-o", "steps=2", "-o", "prefix-tuning.learning_rate=0.01")
    made = foreword("train", "prefix-tuning", *TINY, "--data", data, "--out", out, *options, "--json")
    assert made.code == 0
    told = json.loads(made.out)
    shown = json.loads(foreword("show", out, "--json").out)
    assert {**told, **shown} == told
    assert (shown["form"], shown["config"]["length"], shown["config"]["learning_rate"]) == ("prefix", 4, 0.01)
    assert "prefix-tuning" in foreword("show", out).out
    assert sorted(p.name for p in out.parent.iterdir()) == ["prefix"]


def test_evaluate_counts_what_predict_says(foreword, data, artefact):
    """Accuracy by `evaluate` is the share of lines on which `predict` says the label of the file."""
    lines = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    stdin = "\n".join(row["text"] for row in lines) + "\n\n"
    labels = foreword("predict", artefact, stdin=stdin).out.split()
    right = sum(label == row["label"] for label, row in zip(labels, lines, strict=True))
    metrics = json.loads(foreword("evaluate", artefact, "--data", data, "--json").out)["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(right / len(lines))
    assert metrics["accuracy"]["low"] <= right / len(lines) <= metrics["accuracy"]["high"]


def test_predict_json_keeps_any_text(foreword, artefact):
    texts = ["{text} {mask} {{", "__import__('os')", "[MASK] [CLS] \x00 end", "\u202eright to left שלום", "é" * 50]
    found = foreword("predict", artefact, "--json", *texts)
    answers = [json.loads(line) for line in found.out.splitlines()]
    assert [a["text"] for a in answers] == texts
    assert all(sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-5) for a in answers)
    assert foreword("predict", artefact, "--json", stdin="\n".join(texts)).out == found.out


def test_columns_under_other_names(foreword, data, artefact, tmp_path):
    """A file whose column has another name than the template's field, all rows of it."""
    lines = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    other = tmp_path / "other.csv"
    other.write_text("sentence,gold\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in lines))
    found = foreword(
        "evaluate", artefact, "--data", other, "--text", "sentence", "--label", "gold", "--split", "all", "--json"
    )
    told = json.loads(found.out)
    assert told["rows"] == len(lines)
    first = json.loads(foreword("evaluate", artefact, "--data", data, "--json").out)
    for name, measured in told["metrics"].items():
        assert measured["value"] == pytest.approx(first["metrics"][name]["value"])


def test_compare_goes_on_and_prints_one_table(foreword, data, tmp_path):
    arguments = ["compare", *TINY, "--data", data, "--out", tmp_path / "x", "--seeds", "2"]
    first = foreword(*arguments, "--methods", "manual,bag-of-words")
    assert first.code == 0, first.err
    before = (tmp_path / "x" / "results.jsonl").read_text()
    grid = ("-o", "prompt-tuning.length=2,3", "-o", "steps=2")
    second = foreword(*arguments, "--methods", "manual,bag-of-words,prompt-tuning", *grid)
    assert second.code == 0, second.err
    after = (tmp_path / "x" / "results.jsonl").read_text()
    assert after.startswith(before)
    assert re.search(r"(?m)^prompt-tuning +\d", second.out)
    assert "2 of 2" in second.out
    told = json.loads(foreword(*arguments, "--methods", "manual,bag-of-words,prompt-tuning", *grid, "--json").out)
    assert [line["method"] for line in told["lines"]] == ["manual", "bag-of-words", "prompt-tuning"]
    assert (tmp_path / "x" / "results.jsonl").read_text() == after


def test_several_models_are_one_table(foreword, data, tmp_path):
    models = (*TINY, "--model", "foreword-tiny-causal")
    found = foreword("compare", *models, "--data", data, "--out", tmp_path / "x", "--seeds", "1", "--methods", "manual")
    assert found.code == 0, found.err
    assert "foreword-tiny, masked" in found.out
    assert "foreword-tiny-causal, causal" in found.out


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(foreword, data, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    methods = "manual,bag-of-words,fine-tuning"
    arguments = ("compare", *TINY, "--data", data, "--out", tmp_path, "--seeds", "2", "--methods", methods)
    found = foreword(*arguments, "-o", "steps=1", "-o", "fine-tuning.learning_rate=0.1,0.2")
    assert found.code == 0, found.err
    wide = max(len(line) for line in found.out.splitlines())
    assert wide <= columns
    assert found.out.count("vs fine-tuning") == 1
    told = json.loads(foreword(*arguments, "-o", "steps=1", "-o", "fine-tuning.learning_rate=0.1,0.2", "--json").out)
    accuracy = told["lines"][0]["metrics"]["accuracy"]
    shown = f"{100 * accuracy['mean']:.1f} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    assert shown in found.out, "a cell was cut"


def test_lists(foreword, data):
    assert json.loads(foreword("methods", "prompt-tuning", "--json").out)["options"]["length"] == 20
    assert "bag-of-words" in foreword("methods").out
    assert "deberta-v2" in foreword("models").out
    assert "builtin:sentiment" in foreword("tasks").out
    described = json.loads(foreword("tasks", data, "--json").out)
    assert described["rows"] == {"train": 64, "validation": 64, "test": 64}
    assert "a fine film" in foreword("tasks", data).out


def test_shots_and_label_words_reach_the_artefact(foreword, data, tmp_path):
    words = ("--label-words", "good=fine,nice", "--label-words", "bad=poor", "--template", "{text} : {mask}")
    out = tmp_path / "x"
    found = foreword("train", "manual", *TINY, "--data", data, "--out", out, "--shots", "3", *words)
    assert found.code == 0, found.err
    shown = json.loads(foreword("show", out, "--json").out)
    assert shown["label_words"] == {"bad": ["poor"], "good": ["fine", "nice"]}
    assert shown["template"] == "{text} : {mask}"
    assert shown["metrics"]["validation"]["rows"] == 6


def test_cut_texts_are_counted(foreword, data, artefact, tmp_path):
    long = tmp_path / "long.jsonl"
    records = [{"text": "word " * 400, "label": "good"}, {"text": "short", "label": "bad"}]
    long.write_text("".join(json.dumps(r) + "\n" for r in records))
    found = foreword("evaluate", artefact, "--data", long, "--split", "all")
    assert "1 of 2 rows were too long" in found.err


def test_help_says_every_option(foreword):
    import click

    from foreword.cli.main import cli

    for name, command in cli.commands.items():
        assert command.short_help, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts}"


def test_installed_command_is_quiet_and_colourless(data, artefact):
    """In a process of its own: nothing on stderr but what the command says, no colour, answers on stdout."""
    command = [sys.executable, "-m", "foreword", "predict", str(artefact), "a fine film"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout in ("good\n", "bad\n")
    assert found.stderr == ""
    assert shutil.which("foreword") is None or "\x1b" not in found.stdout


def test_pipe_that_closes_early_is_no_error(artefact):
    """`foreword predict ... | head -1` ends without a traceback."""
    texts = "\n".join(f"text {i}" for i in range(3000))
    command = f"'{sys.executable}' -m foreword predict '{artefact}' | head -1"
    found = subprocess.run(["bash", "-c", command], input=texts, capture_output=True, text=True, check=False)
    assert found.stdout in ("good\n", "bad\n")
    assert "Traceback" not in found.stderr
