"""python -m pytest tests/recipes/test_instruction_induction.py

The recipe on two small tasks with a random model: its table, that it goes on without searching again, and its parts.
"""

import json
import sys
from pathlib import Path

import pytest

from recipes import instruction_induction as recipe


@pytest.fixture
def data(tmp_path) -> Path:
    words = "river garden window teacher winter bread horse letter music island doctor bridge".split()
    tasks = {"first": lambda w: w[0], "double": lambda w: w + w}
    for name, rule in tasks.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for split, some in (("train", words[:8]), ("test", words[8:])):
            rows = [{"input": w, "output": [rule(w)]} for w in some]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    listing = {name: {"metric": "exact_match", "gold_instructions": ["Do it", "Write it"]} for name in tasks}
    (tmp_path / "data" / "tasks.json").write_text(json.dumps(listing))
    return tmp_path / "data"


def run(monkeypatch, data: Path, out: Path, *more: str) -> None:
    options = ["-o", "candidates=2", "-o", "rounds=0", "-o", "budget=20", "-o", "proposal_tokens=4"]
    argv = ["recipe", "--data", str(data), "--model", "foreword-tiny-causal", "--out", str(out), *options, *more]
    monkeypatch.setattr(sys, "argv", argv)
    assert recipe.main() == 0


def test_a_line_a_task_and_nothing_twice(data, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    run(monkeypatch, data, tmp_path / "out", "--page", str(page))
    first = capsys.readouterr()
    text = page.read_text()
    assert first.err.count("searching") == 2
    rows = [line for line in text.splitlines() if line.startswith(("| first", "| double"))]
    assert len(rows) == 2 and all(row.count("|") == rows[0].count("|") for row in rows)
    for name in ("first", "double"):
        line = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert line["evaluations"] <= 20 and line["rows"]["test"] == 4
        assert len({*line["search_rows"].values()}) == 3
        assert 1 <= line["exhaustive"]["choice_rank"] <= line["candidates"]
    run(monkeypatch, data, tmp_path / "out", "--page", str(page))
    assert capsys.readouterr().err.count("searching") == 0
    assert page.read_text() == text
    run(monkeypatch, data, tmp_path / "out", "--seed", "1", "--only", "first")
    assert capsys.readouterr().err.count("searching") == 1
