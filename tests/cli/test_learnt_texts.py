"""Answers in text, learnt, from the command line. Run: python -m pytest tests/cli/test_learnt_texts.py"""

import json

import pytest

from tests.cli.conftest import write

FAST = ["-o", "length=2", "-o", "steps=3", "-o", "batch_size=4", "-o", "eval_every=3", "--max-new-tokens", 8]
MODEL = ["--model", "foreword-tiny-causal"]


def told(first: str, count: int = 24) -> list[dict]:
    return [{"source": f"{first} {n}", "targets": [f"{first} is {n}", f"a {first}"][: 1 + n % 2]} for n in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks of texts and one of labels."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("pubs", "inns"):
        for split, count in (("train", 20), ("validation", 4), ("test", 6)):
            write(folder / name / f"{split}.jsonl", told(f"{name} {split}", count))
    write(folder / "kinds.jsonl", [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(40)])
    return folder


def test_train_show_evaluate_predict_retrain(foreword, folder, tmp_path):
    out = tmp_path / "a"
    made = foreword("train", "prefix-tuning", *MODEL, "--data", folder / "pubs", "--out", out, *FAST, "--json")
    assert made.code == 0, made.err
    validation = json.loads(made.out)["metrics"]["validation"]
    assert validation["rows"] == 4 and validation["nll"] > 0 and "exact_match" in validation
    record = json.loads((out / "foreword.json").read_text())
    assert record["format"]["decoding"] == {"max_new_tokens": 8, "stop_strings": ["\n"]}
    for how in ([], ["--num-beams", 3, "--decoding", "length_penalty=0.5"], ["--decoding", "repetition_penalty=1.5"]):
        shown = foreword("evaluate", out, "--data", folder / "pubs", "--json", *how)
        assert shown.code == 0 and json.loads(shown.out)["rows"] == 6
    greedy = foreword("predict", out, "inn 5", "--json")
    sampled = ["--decoding", "do_sample=true", "--decoding", "temperature=3", "--decoding", "seed=1"]
    drawn = foreword("predict", out, "inn 5", "--json", *sampled)
    assert json.loads(greedy.out)["source"] == "inn 5"
    assert json.loads(greedy.out)["texts"] != json.loads(drawn.out)["texts"]
    assert drawn.out == foreword("predict", out, "inn 5", "--json", *sampled).out
    again = foreword("retrain", out, *MODEL, "--out", tmp_path / "again")
    assert again.code == 0, again.err


def test_tasks_of_texts_and_of_labels_train_as_one_stack(foreword, folder, tmp_path):
    found = foreword("train", "prompt-tuning", *MODEL, "--tasks", folder, "--out", tmp_path, *FAST[:-2], "--json")
    assert found.code == 0, found.err
    lines = {line["task"]: line for line in json.loads(found.out)["tasks"]}
    assert {name: line["verdict"] != "failed" for name, line in lines.items()} == dict.fromkeys(lines, True)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    learnt = {r["task"]: r["development"] for r in records if r["method"] == "prompt-tuning"}
    assert set(learnt) == {"pubs", "inns", "kinds"}
    assert "accuracy" in learnt["kinds"] and all("nll" in own for own in learnt.values())


def test_low_data_is_compared_on_the_same_subsets(foreword, folder, tmp_path):
    options = [
        "--methods",
        "manual,prompt-tuning",
        "--shots",
        5,
        "--subsets",
        2,
        "--seeds",
        2,
        "--data",
        folder / "inns",
    ]
    grid = ["-o", "prompt-tuning.place=front,answer"]
    found = foreword("compare", *MODEL, *options, *grid, "--out", tmp_path, *FAST)
    assert found.code == 0, found.err
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    results = [r for r in records if r["role"] == "result"]
    assert sorted((r["method"], r["details"]["subset"], r["seed"]) for r in results) == [
        (method, subset, seed) for method in ("manual", "prompt-tuning") for subset in (0, 1) for seed in (0, 1)
    ]
    assert {r["point"]["place"] for r in records if r["role"] == "trial"} == {"front", "answer"}
    refused = foreword("compare", *MODEL, *options[:2], "--subsets", 2, "--data", folder / "inns", "--out", tmp_path)
    assert refused.code == 2 and "--shots" in refused.err


BAD = [
    ([{"source": "a", "targets": []}], [], "give the answer as text"),
    ([{"source": "a", "targets": ["fine", ""]}], [], "give the answer as text"),
    ([{"source": "a", "targets": ["x" * 600]}], [], "has 602 pieces"),
    ([{"source": "a", "targets": ["one###two"]}], ["--stop", "###"], "'###' inside"),
    ([], ["--decoding", "beams=3"], "not NAME=VALUE"),
    ([], ["--decoding", "num_beams=x"], "not a whole number"),
    ([], ["--num-beams", 2, "--decoding", "num_beams=3"], "differ"),
    ([], ["--decoding", "min_new_tokens=99"], "between 0 and max_new_tokens"),
]


@pytest.mark.parametrize(("rows", "options", "said"), BAD)
def test_what_cannot_be_learnt_is_told_in_a_sentence(foreword, tmp_path, rows, options, said):
    write(tmp_path / "data.jsonl", told("inn") + rows)
    base = ["train", "prompt-tuning", *MODEL, "--out", tmp_path / "x", "--data", tmp_path / "data.jsonl"]
    found = foreword(*base, *FAST, *options)
    assert found.code == 2 and said in " ".join(found.err.split()), found.err
    assert "Traceback" not in found.err and not (tmp_path / "x").exists()


def test_masked_models_and_labels_are_told_apart(foreword, folder, tmp_path):
    masked = foreword(
        "train", "prompt-tuning", "--model", "foreword-tiny", "--data", folder / "pubs", "--out", tmp_path / "x"
    )
    assert masked.code == 2 and "a masked model cannot write" in masked.err
    out = tmp_path / "labels"
    assert foreword("train", "manual", *MODEL, "--data", folder / "kinds.jsonl", "--out", out).code == 0
    refused = foreword("predict", out, "row 1", "--num-beams", 2)
    assert refused.code == 2 and "are for answers in text" in refused.err
