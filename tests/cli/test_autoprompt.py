"""Searches from the command line. python -m pytest tests/cli/test_autoprompt.py"""

import json

import pytest

from foreword.methods.registry import train
from foreword.models.load import load
from tests.planted import planted_task


@pytest.fixture
def data(tmp_path):
    task = planted_task(4, train=16, validation=8, test=8)
    folder = tmp_path / "planted"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"text": r.fields["text"], "label": task.labels[r.label or 0]} for r in task.rows(split)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("model", ["foreword-tiny", "foreword-tiny-causal"])
def test_compare_takes_words_and_vectors_side_by_side(model, data, tmp_path, foreword):
    methods = "manual,autoprompt,prompt-tuning,prefix-tuning"
    options = ["autoprompt.steps=2", "autoprompt.candidates=4", "prompt-tuning.steps=2", "prefix-tuning.steps=2"]
    given = ["compare", "--model", model, "--data", str(data), "--methods", methods, "--seeds", "1", "--json"]
    done = foreword(*given, "--out", str(tmp_path / "out"), *[x for o in options for x in ("-o", o)])
    assert done.code == 0, done.err
    assert all(f'"{method}"' in done.out for method in methods.split(","))
    assert json.loads(done.out)


def test_show_tells_what_a_search_did(tmp_path, foreword):
    task = planted_task(4, train=16, validation=8, test=8)
    artefact = train(load("foreword-tiny"), task, "autoprompt", steps=3, candidates=4, length=3).artefact
    text = foreword("show", artefact.save(tmp_path / "x")).out
    for said in (
        "the search began at",
        "step 1",
        "predicted",
        "rank",
        "loss without",
        "attention to",
        "top words with",
    ):
        assert said in text
    trace = json.loads(foreword("show", "--json", tmp_path / "x").out)["trace"]
    assert len(trace["steps"]) == 3 and len(trace["prompt"]["without_token"]) == 3


@pytest.mark.parametrize("model", ["foreword-tiny", "foreword-tiny-causal"])
def test_the_published_loop_is_a_variant(model, tmp_path):
    """One slot a step, accuracy decides, and what cannot be written is kept as ids in slots."""
    task = planted_task(4, train=16, validation=8, test=8)
    options = {"variant": "paper", "steps": 4, "candidates": 5, "accumulation": 1, "length": 3}
    artefact = train(load(model), task, "autoprompt", seed=2, **options).artefact
    steps = artefact.trace["steps"]
    assert len(steps) == 4 and all(len(step["slot"]) == 1 for step in steps)
    for step in steps:
        assert step["accepted"] == (step["right"][1] > step["right"][0])
    accepted = [step["tried"] for step in steps if step["accepted"]]
    assert artefact.metrics["rows_read"] == 4 * 16 * 6
    if not accepted and model == "foreword-tiny":
        assert artefact.format.template.slots and set(artefact.value.ids_P.tolist()) == {4}
