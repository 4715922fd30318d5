"""Answers in text from the command line. Run: python -m pytest tests/cli/test_texts.py"""

import json

import pytest

from tests.cli.conftest import write
from tests.methods.planted_lm import markov_parts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model on disk that says 7 after a colon."""
    folder = tmp_path_factory.mktemp("model")
    network, tokenizer = markov_parts({":": {"7": 0.7, "3": 0.3}, "7": {"": 1.0}})
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder beside tasks.json, as instruction induction is published."""
    root = tmp_path_factory.mktemp("induction")
    (root / "tasks.json").write_text(json.dumps({"sevens": {"metric": "contains"}}))
    for split, count in (("train", 20), ("test", 10)):
        rows = [{"input": f"{split} {n}", "output": ["7"] if n % 5 else ["nine", "9"]} for n in range(count)]
        write(root / "sevens" / f"{split}.jsonl", rows)
    return root / "sevens"


@pytest.fixture(scope="module")
def options(model):
    return ("--model", model, "--template", "In {input} out:{answer}")


def test_a_task_says_how_it_is_answered(foreword, data):
    found = foreword("tasks", data)
    assert "answers in text (contains)" in found.out and "nine" in found.out
    assert json.loads(foreword("tasks", data, "--json").out)["metric"] == "contains"
    plain = foreword("tasks", data / "test.jsonl")
    assert "answers in text (exact match)" in plain.out


def test_train_show_evaluate_predict(foreword, data, options, tmp_path):
    made = foreword(
        "train", "manual", *options, "--data", data, "--out", tmp_path / "a", "--max-new-tokens", 6, "--json"
    )
    assert made.code == 0, made.err
    told = json.loads(made.out)
    assert told["decoding"] == {"max_new_tokens": 6, "stop_strings": ["\n"]}
    assert "max_new_tokens=6" in foreword("show", tmp_path / "a").out
    card = (tmp_path / "a" / "README.md").read_text()
    assert "Answers: texts" in card
    shown = foreword("evaluate", tmp_path / "a", "--data", data)
    assert "contains" in shown.out and "0.800" in shown.out and shown.err.endswith("10 test rows of sevens\n")
    metrics = json.loads(foreword("evaluate", tmp_path / "a", "--data", data, "--json").out)["metrics"]
    assert list(metrics) == ["contains", "exact_match", "f1", "no_answer", "cut"]
    assert metrics["contains"]["value"] == pytest.approx(0.8)
    assert foreword("predict", tmp_path / "a", "one", "two").out == "7\n7\n"
    said = json.loads(foreword("predict", tmp_path / "a", "--json", "one").out)
    assert said == {"input": "one", "answer": "7", "texts": ["7"]}


def test_samples_vote_and_the_saved_ones_are_told(foreword, data, options, tmp_path):
    given = (
        "-o",
        "samples=9",
        "-o",
        "instruction=So:",
        "-o",
        "max_new_tokens=4",
        "-o",
        "temperature=1",
        "-o",
        "extract=number",
    )
    made = foreword("train", "chain-of-thought", *options, "--data", data, "--out", tmp_path / "v", *given)
    assert made.code == 0, made.err
    shown = foreword("evaluate", tmp_path / "v", "--data", data)
    assert "of 90 samples were drawn; the other" in shown.err
    samples = json.loads(foreword("evaluate", tmp_path / "v", "--data", data, "--json").out)["samples"]
    assert samples["asked"] == 90 and 50 <= samples["drawn"] < 90 and samples["silent"] == 0
    whole = foreword(
        "train", "chain-of-thought", *options, "--data", data, "--out", tmp_path / "w", *given, "-o", "early_stop=false"
    )
    assert whole.code == 0, whole.err
    every = json.loads(foreword("evaluate", tmp_path / "w", "--data", data, "--json").out)
    assert every["metrics"] == json.loads(foreword("evaluate", tmp_path / "v", "--data", data, "--json").out)["metrics"]
    curve = every["samples"]["majority"]
    assert list(curve) == ["1", "3", "5", "9"] and samples["majority"] == {}
    assert curve["9"] == pytest.approx(every["metrics"]["contains"]["value"])
    assert curve["1"] == pytest.approx(0.7 * 0.8, abs=0.15)
    assert "a majority of k samples is right" in foreword("evaluate", tmp_path / "w", "--data", data).err
    said = json.loads(foreword("predict", tmp_path / "v", "--json", "one").out)
    assert said["answer"] == "7" and sum(said["votes"].values()) == pytest.approx(1)


def test_compare_prints_the_task_s_metric(foreword, data, options, tmp_path):
    found = foreword("compare", *options, "--data", data, "--methods", "manual", "--seeds", 1, "--out", tmp_path / "c")
    assert found.code == 0, found.err
    assert "contains" in found.out and "80.0" in found.out and "accuracy" not in found.out
    line = json.loads(
        foreword(
            "compare", *options, "--data", data, "--methods", "manual", "--seeds", 1, "--out", tmp_path / "c", "--json"
        ).out
    )["lines"][0]
    assert line["metrics"]["contains"]["mean"] == pytest.approx(0.8)


def test_refusals(foreword, data, options, tmp_path):
    masked = foreword(
        "compare", "--model", "foreword-tiny", "--data", data, "--methods", "manual", "--out", tmp_path / "m"
    )
    assert masked.code == 2 and "a masked model cannot write; use a causal model" in masked.error
    tuned = foreword("train", "linear-probe", *options, "--data", data, "--out", tmp_path / "p")
    assert tuned.code == 2 and "sevens has answers in text" in tuned.error
    rows = [{"input": f"{word} {n}", "label": word} for word in ("up", "down") for n in range(9)]
    labels = write(tmp_path / "labels.jsonl", rows)
    made = foreword("train", "manual", "--model", "foreword-tiny", "--data", labels, "--out", tmp_path / "l")
    assert made.code == 0, made.err
    other = foreword("evaluate", tmp_path / "l", "--data", data, "--text", "input", "--targets", "output")
    assert other.code == 2 and "has labels, and sevens answers in text" in other.error
    metric = foreword(
        "compare", *options, "--data", data, "--methods", "manual", "--metric", "meteor", "--out", tmp_path / "m"
    )
    assert metric.code == 2
    missing = write(tmp_path / "none.jsonl", [{"input": "a", "output": []}, {"input": "b", "output": ["x"]}])
    found = foreword("tasks", missing)
    assert found.code == 2 and "none.jsonl, row 1: 'output' is []; give the answer as text" in found.error
