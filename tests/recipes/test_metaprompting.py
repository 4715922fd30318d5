"""The recipe at a size of seconds, stopped and gone on with: python -m pytest tests/recipes/test_metaprompting.py"""

import json
import random
from pathlib import Path

import metaprompting as recipe
import pytest

import foreword
from foreword.methods import METHODS
from foreword.training.options import configure
from tests.planted import NOUNS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """HWU64's class names with made-up rows, and two small tasks of different families."""
    folder = tmp_path_factory.mktemp("data")
    names = json.loads((ROOT / "foreword/data/splits/metaprompter2023.json").read_text())["data"]["hwu64"]
    rng, count = random.Random(0), 0

    def write(place: str, name: str, labels: list[str], rows: int) -> None:
        nonlocal count
        (folder / place).mkdir(exist_ok=True)
        lines = []
        for label in labels:
            for _ in range(rows):
                count += 1
                lines.append(json.dumps({"text": f"{rng.choice(NOUNS)} {count}", "label": label}) + "\n")
        (folder / place / f"{name}.jsonl").write_text("".join(lines))

    write("hwu64", "all", [name for part in ("train", "validation", "test") for name in names[part]], 4)
    for place, labels in (("sst2", ["negative", "positive"]), ("trec", ["entity", "human"])):
        for part in ("train", "validation", "test"):
            write(place, part, labels, 5)
    # A text that one task trains on and another is tested on, in other letters.
    asked = json.loads((folder / "trec/test.jsonl").read_text().splitlines()[0])["text"]
    with (folder / "sst2/train.jsonl").open("a") as file:
        file.write(json.dumps({"text": f"{asked.upper()}!", "label": "positive"}) + "\n")
    return folder


def test_quick_cells_end_in_tables_and_are_not_made_again(data, tmp_path, capsys, monkeypatch):
    given = [
        *("--quick", "--data", str(data), "--out", str(tmp_path), "--episodes", "2", "--seeds", "1"),
        *("--only", "classes/hwu64/1/multitask/*", "--only", "classes/hwu64/1/maml/*"),
    ]
    assert recipe.main(given) == 0
    told = capsys.readouterr().out
    assert "## hwu64, 5-way, 1-shot" in told
    for arm in ("maml", "maml, zero-step", "multitask", "prototypes", "fine-tuning"):
        assert f"| {arm} |" in told
    assert "| - multitask |" in told
    assert told.strip() in (tmp_path / "table.md").read_text()

    def again(*_, **__):
        raise AssertionError("trained or measured again")

    monkeypatch.setattr(recipe, "train_many", again)
    monkeypatch.setattr("foreword.evaluation.episode_comparison._answers", again)
    assert recipe.main([*given, "--table"]) == 0
    assert capsys.readouterr().out == told
    # Another question's table does not take this one's place.
    assert recipe.main([*given[:-4], "--only", "classes/hwu64/5/maml/0", "--table"]) == 0
    assert capsys.readouterr().out == told
    assert told.strip() in (tmp_path / "table.md").read_text()


def test_classes_are_named_by_words_of_one_piece_each_its_own():
    encode = foreword.load("foreword-mini").tokenizer.encode
    names = json.loads((ROOT / "foreword/data/splits/metaprompter2023.json").read_text())["data"]
    for data, words in recipe.WORDS.items():
        classes = [name for part in names[data].values() for name in part]
        assert not words.keys() - set(classes)
        used = [words.get(name, name.lower()) for name in classes]
        assert len(set(used)) == len(used)
        assert [word for word in used if len(encode(word, add_special_tokens=False)) > 1] == []


def test_a_family_is_left_out_whole(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipe, "FAMILIES", {"sentiment": ("sst2",), "questions": ("trec",)})
    given = ["--quick", "--data", str(data), "--out", str(tmp_path), "--episodes", "2", "--seeds", "1"]
    assert recipe.main([*given, "--only", "tasks/questions/1/vocabulary/0"]) == 0
    told = capsys.readouterr()
    assert "## left out: questions, up to 5-way, 1-shot" in told.out
    assert "train rows left out, since a later split has their text: 1 of sst2" in told.err
    record = json.loads((tmp_path / "starts/tasks-questions-1-vocabulary-0/foreword.json").read_text())
    assert [task["task"] for task in record["recipe"]["tasks"]] == ["sst2"]


def test_the_method_takes_what_every_cell_asks_for():
    for cell in recipe.cells([], 1):
        assert configure(METHODS["metaprompting"], cell.options()).shots == cell.shots


def test_cells_are_listed_and_the_spread_is_a_range(tmp_path, capsys):
    assert recipe.main(["--list", "--out", str(tmp_path), "--only", "classes/reuters/5/maml/*"]) == 0
    assert capsys.readouterr().out.split() == [f"classes/reuters/5/maml/{seed}" for seed in range(3)]
    assert recipe.main(["--only", "no/such"]) == 2
