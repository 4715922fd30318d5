"""`foreword train --tasks` and `foreword retrain`. Run: python -m pytest tests/cli/test_many.py"""

import json

import pytest

from tests.cli.conftest import rows, write

TINY = ["--model", "foreword-tiny"]
FAST = ["-o", "length=2", "-o", "steps=4", "-o", "batch_size=4", "-o", "eval_every=4"]


@pytest.fixture
def tenants(tmp_path):
    """Two sound tasks, one that is a folder with a description, one that is no JSON, and a file that is no task."""
    folder = tmp_path / "tenants"
    write(folder / "acme.jsonl", rows(0))
    records = [{"said": row["text"], "is": row["label"]} for row in rows(1)]
    for split in ("train", "validation", "test"):
        write(folder / "bolt" / f"{split}.jsonl", records)
    description = {"text": "said", "label": "is", "template": "{said|shorten} sounds {mask}"}
    (folder / "bolt" / "task.json").write_text(json.dumps(description))
    write(folder / "core.csv", [])
    (folder / "core.csv").write_text(
        "text,label\n" + "".join(f"{r['text']},{r['label']}\n".replace(", n", " n") for r in rows(2))
    )
    (folder / "core.task.json").write_text(json.dumps({"label_words": {"good": ["great"], "bad": ["terrible"]}}))
    (folder / "dud.jsonl").write_text("not json\n")
    (folder / "README.md").write_text("ours")
    return folder


def test_a_store_is_made_and_the_bad_task_is_told(foreword, tenants, tmp_path):
    out = tmp_path / "store"
    found = foreword("train", "prompt-tuning", *TINY, "--tasks", tenants, "--out", out, *FAST)
    assert found.code == 2
    assert "1 of 4 tasks failed" in found.error
    for name in ("acme", "bolt", "core"):
        assert foreword("evaluate", out / "artefacts" / name, "--data", tenants / "bolt" if name == "bolt" else
                        tenants / "acme.jsonl", "--split", "all").code == 0  # fmt: skip
        assert name in found.out
    assert "dud.jsonl,line1isnotJSON" in "".join(found.out.split()), "however the table folds it"
    assert "README" not in found.out
    bolt = json.loads((out / "artefacts" / "bolt" / "foreword.json").read_text())
    assert "sounds" in json.dumps(bolt["format"])
    core = json.loads((out / "artefacts" / "core" / "foreword.json").read_text())
    assert "great" in json.dumps(core["format"])
    again = foreword("train", "prompt-tuning", *TINY, "--tasks", tenants, "--out", out, "--resume", *FAST, "--json")
    table = json.loads(again.out)["tasks"]
    assert [t["task"] for t in table] == ["acme", "bolt", "core", "dud"]
    assert table[3]["verdict"] == "failed"
    (tenants / "dud.jsonl").unlink()
    good = foreword("train", "prompt-tuning", *TINY, "--tasks", tenants, "--out", out, *FAST)
    assert good.code == 0
    assert "3 unchanged tasks were finished already" in good.out


def test_retrain_makes_a_store_for_another_model(foreword, tenants, tmp_path):
    (tenants / "dud.jsonl").unlink()
    out, new = tmp_path / "store", tmp_path / "new"
    assert foreword("train", "prompt-tuning", *TINY, "--tasks", tenants, "--out", out, *FAST).code == 0
    found = foreword("retrain", out, "--model", "foreword-tiny-causal", "--out", new)
    assert found.code == 0, found.err
    for word in ("before", "after", "acme", "bolt", "core"):
        assert word in found.out
    for name in ("acme", "bolt", "core"):
        made = json.loads((new / "artefacts" / name / "foreword.json").read_text())
        assert made["model"]["kind"] == "causal"
    write(tenants / "acme.jsonl", rows(5))
    changed = foreword("retrain", out, "--model", "foreword-tiny-causal", "--out", tmp_path / "newer", "--json")
    assert changed.code == 2
    acme = json.loads(changed.out)["tasks"][0]
    assert acme["verdict"] == "failed"
    assert "--allow-changed-data" in acme["reason"]
    inside = foreword("retrain", out / "artefacts" / "acme", "--model", "foreword-tiny-causal", "--out", out)
    assert inside.code == 2
    assert "is the store itself" in inside.error


def test_retrain_draws_again_from_rows_that_have_moved(foreword, tenants, tmp_path):
    (tenants / "dud.jsonl").unlink()
    out, shots = tmp_path / "store", ["--shots", "3"]
    assert foreword("train", "prompt-tuning", *TINY, "--tasks", tenants, "--out", out, *FAST, *shots).code == 0
    moved = tenants.rename(tmp_path / "moved")
    again = ["retrain", out, "--model", "foreword-tiny-causal"]
    assert foreword(*again, "--out", tmp_path / "gone").code == 2
    found = foreword(*again, "--out", tmp_path / "new", "--tasks", moved, "--json")
    assert found.code == 0, found.err
    assert {t["train_rows"] for t in json.loads(found.out)["tasks"]} == {6}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "either --data SOURCE"),
        (["--data", "x", "--tasks", "y"], "either --data SOURCE"),
        (["--data", "builtin:sentiment", "--stack", "3"], "--stack is for --tasks"),
        (["--tasks", "nowhere"], "not a folder"),
        (["--tasks", ".", "--overwrite"], "--overwrite is not for --tasks"),
    ],
)
def test_what_does_not_go_together_is_refused(foreword, tmp_path, more, says):
    found = foreword("train", "prompt-tuning", *TINY, "--out", tmp_path / "out", *more)
    assert found.code == 2
    assert says in found.error
    assert not (tmp_path / "out").exists()


def test_a_folder_without_tasks_or_with_two_of_a_name_is_refused(foreword, tenants, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = ["train", "prompt-tuning", *TINY, "--out", tmp_path / "out", "--tasks"]
    assert "holds no task" in foreword(*arguments, tmp_path / "empty").error
    write(tenants / "core.jsonl", rows(3))
    assert "both the task 'core'" in foreword(*arguments, tenants).error


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"labelwords": {}}, "has labelwords"),
        ({"labels": 3}, "labels is 3"),
        ({"labels": "xy"}, "give a list of names"),
        ({"text": 5}, "text is 5"),
        ({"options": 7}, "options is 7"),
        ({"template": 3}, "template is 3"),
        ({"template": ["x"]}, "give a text"),
        ({"label_words": {"good": 3}}, "by label"),
        ({"label_words": ["a"]}, "by label"),
    ],
)
def test_a_description_that_is_wrong_fails_its_task_alone(foreword, tenants, tmp_path, description, says):
    (tenants / "core.task.json").write_text(json.dumps(description))
    found = foreword("train", "manual", *TINY, "--tasks", tenants, "--out", tmp_path / "out")
    assert "".join(says.split()) in "".join(found.out.split())
    assert "2 of 4 tasks failed" in found.error


def test_a_hard_prompt_is_measured_on_another_model(foreword, data, tmp_path):
    out = tmp_path / "words"
    template = ["--template", "{text|shorten} It was {mask}."]
    assert foreword("train", "manual", *TINY, "--data", data, "--out", out, *template).code == 0
    own = foreword("evaluate", out, "--data", data, "--json")
    other = foreword("evaluate", out, "--data", data, "--model", "foreword-mini", "--json")
    assert (own.code, other.code) == (0, 0), other.err
    told = foreword("evaluate", out, "--data", data, "--model", "foreword-mini").err
    assert "read by foreword-mini; made for foreword-tiny" in told
    accuracy = [json.loads(found.out)["metrics"]["nll"]["value"] for found in (own, other)]
    assert accuracy[0] != accuracy[1]


def test_words_for_a_masked_model_are_read_by_a_causal_one_and_back(foreword, data, tmp_path):
    masked, causal, words = tmp_path / "masked", tmp_path / "causal", tmp_path / "words"
    made = ["train", "manual", "--data", data, "--out"]
    assert foreword(*made, masked, *TINY, "--template", "{text|shorten} It was {mask}.").code == 0
    template = ["--template", "{text|shorten} It was {answer}"]
    assert foreword(*made, causal, "--model", "foreword-tiny-causal", *template).code == 0
    metrics = [
        json.loads(foreword("evaluate", out, "--data", data, "--model", "foreword-tiny-causal", "--json").out)[
            "metrics"
        ]
        for out in (masked, causal)
    ]
    assert metrics[0] == metrics[1], "the same words, put to the same model"
    assert foreword("evaluate", causal, "--data", data, *TINY).code == 0
    assert foreword(*made, words, *TINY, "--template", "It was {mask}: {text|shorten}").code == 0
    found = foreword("evaluate", words, "--data", data, "--model", "foreword-tiny-causal")
    assert found.code == 2
    assert "goes on after its answer" in found.error


def test_a_store_is_no_artefact_and_its_artefacts_are_named(foreword, artefact):
    found = foreword("show", artefact.parent)
    assert found.code == 2
    assert str(artefact) in found.error


def test_a_learnt_prompt_is_refused_by_another_model(foreword, artefact, data):
    found = foreword("evaluate", artefact, "--data", data, "--model", "foreword-mini")
    assert found.code == 2
    assert "train it again" in found.error


def test_a_finished_run_is_not_made_again(foreword, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["train", "prompt-tuning", *TINY, "--data", data, "--out", out, *FAST]
    assert foreword(*arguments).code == 0
    before = (out / "foreword.json").stat().st_mtime_ns
    found = foreword(*arguments, "--resume")
    assert found.code == 0
    assert "finished already" in found.err
    assert (out / "foreword.json").stat().st_mtime_ns == before
    assert foreword(*arguments[:-1], "eval_every=2", "--resume").code == 2, "another job does not replace it"
