"""Where answers and reasoning end, as the command line says it. Run: python -m pytest tests/cli/test_limits.py"""

import json

import pytest

from tests.cli.conftest import write
from tests.methods.planted_lm import markov_parts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network, tokenizer = markov_parts({":": {"7": 1.0}, "7": {"7": 1.0}})
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("answers", ["answer", "label"])
def test_one_option_says_where_reasoning_ends(foreword, model, tmp_path, answers):
    rows = [{"q": f"t{n}", answers: "47"[n % 2]} for n in range(8)]
    for split in ("train", "test"):
        write(tmp_path / "data" / f"{split}.jsonl", rows)
    options = ("--model", model, "--data", tmp_path / "data", "--text", "q", "--template", "Q {q} A:{answer}")
    made = foreword(
        "train", "chain-of-thought", *options, "--out", tmp_path / "a", "--max-new-tokens", 9, "--json",
        "-o", "instruction=So:",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert json.loads(made.out)["decoding"]["max_new_tokens"] == 9
    both = foreword(
        "train", "chain-of-thought", *options, "--out", tmp_path / "b", "--max-new-tokens", 9, "-o", "max_new_tokens=8"
    )
    assert both.code == 2 and "--max-new-tokens 9 and -o max_new_tokens=8 differ" in both.err
    told = foreword(
        "compare", *options, "--methods", "manual,chain-of-thought", "--out", tmp_path / "c", "--seeds", 1,
        "--max-new-tokens", 5, "--no-sensitivity", "-o", "chain-of-thought.instruction=So:",
    )  # fmt: skip
    assert told.code == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / "c" / "results.jsonl").read_text().splitlines()]
    [reasoned] = [line for line in lines if line["method"] == "chain-of-thought"]
    assert reasoned["config"]["max_new_tokens"] == 5
    assert "were cut" in " ".join(told.out.split())
    if answers == "answer":
        evaluated = foreword("evaluate", tmp_path / "a", "--data", tmp_path / "data", "--text", "q")
        assert "texts were cut" in evaluated.err
    else:
        plain = foreword("train", "manual", *options, "--out", tmp_path / "d", "--max-new-tokens", 9)
        assert plain.code == 2 and "are labels" in plain.err


def test_the_command_line_says_that_targets_are_longer_than_answers(foreword, model, tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "data" / f"{split}.jsonl", [{"q": f"t{n}", "answer": "word " * 90} for n in range(6)])
    made = foreword(
        "train", "manual", "--model", model, "--data", tmp_path / "data", "--out", tmp_path / "a", "--max-new-tokens", 9
    )
    assert made.code == 0, made.err
    assert (
        "answers end at 9 tokens (--max-new-tokens), and the targets of 6 of 6 training and validation rows" in made.err
    )
