"""Starts from the command line: learnt, used, compared. Run: python -m pytest tests/cli/test_starts.py"""

import json

import pytest

from tests.planted import NOUNS

TINY = ("--model", "foreword-tiny")
SMALL = [x for k, v in {"length": 2, "steps": 2, "batch_size": 2, "queries": 2, "inner_steps": 1, "eval_every": 2,
                        "validation_episodes": 2, "ways": 2}.items() for x in ("-o", f"{k}={v}")]  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks with labels of their own, one with a description."""
    folder = tmp_path_factory.mktemp("tasks")
    for number, labels in enumerate((("good", "bad"), ("who", "where", "when"))):
        rows = [{"text": f"{NOUNS[i % 30]} {number} {i}", "label": labels[i % len(labels)]} for i in range(60)]
        (folder / f"task{number}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "task1.task.json").write_text(
        json.dumps({"label_words": {"who": "person"}, "template": "{text}? {mask}"})
    )
    return folder


@pytest.fixture(scope="module")
def start(tasks, tmp_path_factory):
    from foreword.cli.main import run

    out = tmp_path_factory.mktemp("starts") / "x"
    assert run(["train", "metaprompting", *TINY, "--tasks", str(tasks), "--out", str(out), *SMALL]) == 0
    return out


def test_a_start_over_a_folder_of_tasks_is_one_artefact(foreword, start):
    shown = json.loads(foreword("show", start, "--json").out)
    assert (shown["form"], shown["method"]) == ("soft", "metaprompting")
    record = json.loads((start / "foreword.json").read_text())
    told = {task["task"]: task["format"] for task in record["recipe"]["tasks"]}
    assert told["task1"]["words"] == [["when"], ["where"], ["person"]]
    assert "{soft:2}" in told["task1"]["template"]
    assert record["recipe"]["frozen"] is True
    assert len(record["metrics"]["curve"]) == 1


def test_training_from_a_start_records_it_and_bad_ones_are_told(foreword, start, data, tmp_path):
    few = ("--data", data, "--limit-train", "8", "-o", "steps=2")
    made = foreword("train", "prompt-tuning", *TINY, *few, "--init", start, "--out", tmp_path / "y")
    assert made.code == 0, made.err
    record = json.loads((tmp_path / "y" / "foreword.json").read_text())
    assert record["parent"] == json.loads((start / "foreword.json").read_text())["tensors_sha256"]
    bad = foreword("train", "prefix-tuning", *TINY, *few, "--init", start, "--out", tmp_path / "z")
    assert bad.code == 2
    assert "give it to prompt-tuning" in bad.error
    missing = foreword("train", "prompt-tuning", *TINY, *few, "--init", tmp_path / "none", "--out", tmp_path / "z")
    assert (missing.code, "is not an artefact" in missing.error) == (2, True)
    other = foreword("train", "lora", *TINY, *few, "--init", start, "--out", tmp_path / "z")
    assert "takes no start" in other.error
    wrong = foreword("train", "lora", *TINY, *few, "--classes", "ds2020", "--out", tmp_path / "z")
    assert "--classes is for metaprompting" in wrong.error


def test_one_table_of_episodes_that_goes_on(foreword, tasks, start, tmp_path):
    given = [
        *("episodes", *TINY, "--tasks", tasks, "--start", f"maml={start}", "--start", f"multitask={start}"),
        *("--out", tmp_path, "--episodes", "3", "--validation-episodes", "2", "--queries", "2", "--steps", "1"),
        *("--rates", "0.1", "--fine-tuning-rates", "1e-4", "--ways", "2"),
    ]
    found = foreword(*given)
    assert found.code == 0, found.err
    for name in ("maml, zero-step", "multitask", "prototypes", "fine-tuning", "than multitask"):
        assert name in found.out
    before = (tmp_path / "episodes.jsonl").read_text()
    told = json.loads(foreword(*given, "--json").out)
    assert (tmp_path / "episodes.jsonl").read_text() == before
    same = next(arm for arm in told["arms"] if (arm["arm"], arm["how"]) == ("maml", "adapted"))
    assert same["versus"]["multitask"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "verdict": "not shown"}
    for wrong, said in (
        (("--arms", "adapted,none"), "--arms has none"), (("--rates", "0,1"), "numbers above 0"),
        (("--start", "x"), "is not NAME=FOLDER"),
    ):  # fmt: skip
        failed = foreword(*given, *wrong)
        assert (failed.code, said in failed.error) == (2, True), failed.err


def test_limits_hold_where_classes_are_apart(tmp_path, capsys):
    from foreword.cli.shared_options import DataChoice
    from foreword.cli.sources import read_source

    rows = [{"text": f"{NOUNS[i % 30]} {i}", "label": "abcdef"[i % 6]} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "classes.json").write_text(json.dumps({"train": [*"ab"], "validation": [*"cd"], "test": [*"ef"]}))
    data, split = str(tmp_path / "rows.jsonl"), str(tmp_path / "classes.json")
    drawn = [
        read_source(data, split, DataChoice((), None, (), limit_train=9, limit_test=7, data_seed=seed))
        for seed in (0, 1)
    ]
    assert [(len(task.train), len(task.validation), len(task.test)) for task in drawn] == [(9, 40, 7)] * 2
    assert drawn[0].hashes()["train"] != drawn[1].hashes()["train"]
    assert "9 of 40 train" in capsys.readouterr().err
