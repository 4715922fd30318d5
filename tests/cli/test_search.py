"""python -m pytest tests/cli/test_search.py

ape and template-search from the command line: what is printed and kept, and what wrong input is told.
"""

import json
from pathlib import Path

import pytest

from foreword.core.artefact import Artefact
from foreword.tasks.read import read_task
from tests.methods.instructions.endpoint import Stub, serving
from tests.planted import planted_task
from tests.seeds import new_seed

TINY = ["--model", "foreword-tiny"]
QUICK = ["-o", "ape.candidates=4", "-o", "ape.resampled=2", "-o", "ape.budget=60", "-o", "ape.proposal_tokens=6"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    task = planted_task(new_seed(), train=30, validation=8, test=12)
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    splits = ("train", "validation", "test")
    folder = path.parent / "task"
    folder.mkdir()
    for split in splits:
        lines = [json.dumps({**r.fields, "label": task.labels[r.label]}) for r in task.rows(split)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_compare_reaches_both_and_says_how_far_the_choice_was_from_the_test_rows(foreword, rows, tmp_path):
    done = foreword(
        "compare", *TINY, "--data", rows, "--methods", "manual,ape,template-search", "--seeds", "1", *QUICK,
        "-o", "template-search.candidates=4", "-o", "template-search.beam=2", "-o", "template-search.budget=60",
        "--out", tmp_path / "runs",
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    for method in ("ape", "template-search"):
        assert f"{method} chose on rows of its own" in " ".join((done.out + done.err).split())
    artefacts = [Artefact.load(p.parent) for p in (tmp_path / "runs" / "artefacts").glob("*/foreword.json")]
    found = {a.method: a for a in artefacts}
    test = read_task(rows).hashes()["test"]
    for method in ("ape", "template-search"):
        split = found[method].metrics["search_rows"]
        assert split["test"] == test and len({*split.values()}) == 3
        search = found[method].metrics["search"]
        assert search["evaluations"] == min(60, 15 * search["candidates"]), (
            "half of the rows choose, all of them at most"
        )
    assert not list((tmp_path / "runs").glob("checkpoints/*")), "what was noted goes when a run has ended"


def test_train_tells_the_choice_and_show_lists_candidates(foreword, rows, tmp_path):
    gold = tmp_path / "gold.txt"
    gold.write_text("Say yes or no.\n\n  Answer   with one word \n")
    done = foreword(
        "train", "ape", *TINY, "--data", rows, "--out", tmp_path / "x", *QUICK, "-o", f"instructions={gold}",
        "-o", "exhaustive=true", "-o", "proposer=none", "--json",
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    told = json.loads(done.out)
    assert set(told["searched"]) == {"chosen", "evaluations", "selection", "all rows", "test", "selection - test"}
    texts = {c["text"]: c["source"] for c in told["metrics"]["candidates"]}
    assert texts["Say yes or no."] == texts["Answer with one word"] == "given"
    shown = foreword("show", tmp_path / "x")
    assert "candidate 1" in (shown.out + shown.err) and "search rows" in (shown.out + shown.err)
    assert not (tmp_path / "x.checkpoint").exists()


def test_a_remote_proposer_needs_leave_and_a_good_key(foreword, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-7")
    with serving(Stub(lambda number, body: (401, {}, {"error": {"message": "no"}}))) as stub:
        asked = [
            *("train", "ape", *TINY, "--data", rows, "--out", tmp_path / "x", *QUICK, "-o", "proposer=remote"),
            *("-o", f"url={stub.url}", "-o", "remote_model=m", "-o", "key_variable=MY_KEY"),
        ]
        refused = foreword(*asked)
        assert refused.code == 2 and "pass --allow-remote" in (refused.out + refused.err)
        assert stub.bodies == []
        stopped = foreword(*asked, "--allow-remote")
        assert stopped.code == 2 and "the key is wrong or missing (MY_KEY is set" in (stopped.out + stopped.err)
        assert len(stub.bodies) == 1 and "secret-7" not in (stopped.out + stopped.err)
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("method", "more", "told"),
    [
        ("ape", ["-o", "budget=3"], "A budget of 3 evaluations cannot read"),
        ("ape", ["-o", "budget=0"], "at least 1"),
        ("ape", ["-o", "instructions=nowhere.txt"], "cannot be read (No such file"),
        ("ape", ["-o", "proposer=/no/model"], "there is no such folder"),
        ("ape", ["-o", "proposer=remote"], "needs url=ADDRESS"),
        ("ape", ["-o", "url=https://x.example/v1"], "write proposer=remote too"),
        ("ape", ["-o", "proposal_temperature=0"], "above 0"),
        ("ape", ["-o", "score=accuracy"], "choose one of likelihood, metric"),
        ("ape", ["--template", "{soft:3} {text} {mask}"], "without {soft:...} slots"),
        ("ape", ["--limit-train", "1"], "a search needs two or more"),
        ("template-search", ["--template", "{soft:3} {text} {mask}"], "without {soft:...} slots"),
        ("manual", ["--allow-remote"], "has no option 'allow_remote'"),
    ],
)
def test_wrong_input_is_one_sentence(foreword, rows, tmp_path, method, more, told):
    quick = QUICK[:4] if method == "ape" else []
    done = foreword("train", method, *TINY, "--data", rows, "--out", tmp_path / "x", *quick, *more)
    assert done.code == 2
    assert told in " ".join((done.out + done.err).split())
    assert "Traceback" not in (done.out + done.err)
    assert not (tmp_path / "x").exists()


def test_instructions_of_another_task_are_told(foreword, rows, tmp_path):
    listing = tmp_path / "tasks.json"
    for text, told in (
        ('{"sum": {"gold_instructions": ["add"]}}', "has no gold_instructions for the task 'task' (it has sum)"),
        ("{", "is not JSON"),
        ('{"task": {"gold_instructions": "add"}}', "must be a list of texts"),
        ('{"task": {"gold_instructions": []}}', "holds no instructions"),
    ):
        listing.write_text(text)
        done = foreword(
            "train", "ape", *TINY, "--data", rows, "--out", tmp_path / "x", *QUICK, "-o", f"instructions={listing}"
        )
        assert done.code == 2 and told in " ".join((done.out + done.err).split())
