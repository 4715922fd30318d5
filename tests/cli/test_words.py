"""Demonstrations, calibration, ensembles and biases from the command line: python -m pytest tests/cli/test_words.py"""

import json

import pytest

TINY = ("--model", "foreword-tiny-causal")


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Words calibrated, demonstrations and neighbours, as artefacts."""
    from foreword.cli.main import run

    root = tmp_path_factory.mktemp("words")
    for name, method, *options in (
        ("plain", "manual", "-o", "calibrate=batch"),
        ("shown", "few-shot", "-o", "calibrate=auto", "-o", "temperature=true", "-o", r"separator=\s/\n"),
        ("near", "few-shot-knn", "-o", "demos=2"),
    ):
        given = ["train", method, *TINY, "--data", str(data), "--shots", "4", "--out", str(root / name)]
        assert run([*given, *options]) == 0
    return root


def test_show_tells_demonstrations_and_calibration(foreword, made):
    told = json.loads(foreword("show", made / "shown", "--json").out)
    assert told["config"]["separator"] == " /\n"
    assert told["metrics"]["demonstrations"]["shown"] == told["template"].count(" /\n")
    assert told["metrics"]["calibration"]["asked"] == "auto"
    assert set(told["metrics"]["calibration_accuracy"]) == {"none", "contextual", "pmi", "batch"}
    assert "calibration" in foreword("show", made / "plain").out
    assert "8 examples, of which the 2 nearest are shown" in foreword("show", made / "near").out


@pytest.mark.parametrize("name", ["plain", "shown", "near"])
def test_evaluate_counts_what_predict_says(name, foreword, made, data):
    lines = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()][:16]
    labels = foreword("predict", made / name, stdin="\n".join(row["text"] for row in lines)).out.split()
    assert len(labels) == len(lines)
    assert set(labels) <= {"good", "bad"}
    found = foreword("evaluate", made / name, "--data", data, "--limit-test", "8", "--json")
    assert 0 <= json.loads(found.out)["metrics"]["accuracy"]["value"] <= 1


def test_rows_that_are_demonstrations_are_told(foreword, made, data):
    found = foreword("evaluate", made / "shown", "--data", data, "--split", "train")
    assert "rows are demonstrations of this prompt, which has their answers" in found.err
    assert "demonstrations" not in foreword("evaluate", made / "shown", "--data", data, "--limit-test", "4").err


@pytest.mark.parametrize("rule", ["mean", "majority"])
def test_an_ensemble_is_an_artefact_like_others(rule, foreword, made, data, tmp_path):
    members = [made / name for name in ("plain", "shown", "near")]
    found = foreword("ensemble", *members, "--out", tmp_path / "e", "--rule", rule)
    assert found.code == 0, found.err
    answers = [
        json.loads(line)
        for line in foreword("predict", tmp_path / "e", "--json", "a fine film", "grim").out.splitlines()
    ]
    own = [
        [json.loads(line) for line in foreword("predict", m, "--json", "a fine film", "grim").out.splitlines()]
        for m in members
    ]
    for n, answer in enumerate(answers):
        if rule == "mean":
            mean = sum(o[n]["probabilities"]["good"] for o in own) / 3
            assert answer["probabilities"]["good"] == pytest.approx(mean, abs=1e-5)
        else:
            assert answer["label"] == max(("good", "bad"), key=[o[n]["label"] for o in own].count)
    assert "member 3" in foreword("show", tmp_path / "e").out
    again = foreword("ensemble", *members, "--out", tmp_path / "e")
    assert again.code == 2
    assert "exists already" in again.error
    assert "two artefacts or more" in foreword("ensemble", members[0], "--out", tmp_path / "x").error
    assert "named twice" in foreword("ensemble", members[0], members[0], "--out", tmp_path / "x").error


def test_compare_prints_how_many_were_shown_and_other_templates(foreword, data, tmp_path):
    given = ("compare", *TINY, "--data", data, "--methods", "manual,few-shot", "--shots", "2", "--seeds", "1")
    found = foreword(*given, "--limit-test", "8", "--out", tmp_path / "r", "-o", "calibrate=contextual")
    assert found.code == 0, found.err
    assert "which takes ten times the test rows" in found.err
    for said in ("demonstrations", "4 of 4", "contextual", "other templates"):
        assert said in found.out
    lines = [json.loads(line) for line in (tmp_path / "r" / "results.jsonl").read_text().splitlines()]
    assert all(line["details"]["templates"]["tried"] == 10 for line in lines)
    off = foreword(*given, "--limit-test", "8", "--out", tmp_path / "s", "--no-sensitivity")
    assert "other templates" not in off.out + off.err


def test_biases_are_printed(foreword, data):
    given = ("bias", *TINY, "--data", data, "--demos", "2", "--draws", "2", "--orders", "2", "--rows", "8")
    told = json.loads(foreword(*given, "--json").out)
    assert (told["prompts"], told["rows"], told["shown"]) == (4, 8, 2)
    assert sum(told["before"]["said"].values()) == pytest.approx(1)
    assert "the label of the last one" in foreword(*given).out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "calibrate=always"), "choose one of none, contextual, pmi, batch, auto"),
        (("-o", "demos=0"), "at least 1"),
        (("-o", "demo=3"), "Did you mean demos?"),
        (("-o", "uncut=2"), "above 0 and at most 1"),
        (("--template", "{demos}{text}{demos}"), "{demos} 2 times"),
        (("--template", "{soft:3}{text}"), "demonstrations are words"),
        (("--template", "{'an open quote {text}"), "position 0"),
        (("-o", "encoder=/nowhere/at/all"), "has no option 'encoder'"),
    ],
)
def test_wrong_input_is_one_sentence(options, said, foreword, data, tmp_path):
    found = foreword("train", "few-shot", *TINY, "--data", data, "--out", tmp_path / "x", *options)
    assert found.code == 2
    assert said in found.error
    assert not (tmp_path / "x").exists()
