"""The search benchmark measures what it says. python -m pytest tests/benchmarks/test_search.py"""

import json
from typing import Any

import pytest

from benchmarks import search
from benchmarks.parts.search_peer import PaperLoop


def test_a_quick_run_ends_in_json_and_is_not_made_twice(tmp_path, capsys, monkeypatch):
    search.main(["--quick", "--only", "gpt2/10,bert/10", "--out", str(tmp_path)])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [*summary["cells"]] == ["gpt2/10", "bert/10"]
    record = json.loads((tmp_path / "search-quick" / "gpt2_10.json").read_text())
    assert record["gate"]["gap"] <= 1e-5 and record["candidates"] == 10
    assert record["flops"]["ours"] < record["flops"]["theirs"]
    assert all(cell["ratio"] > 1 for cell in summary["cells"].values())
    assert summary["cells"]["gpt2/10"]["ratio"] > summary["cells"]["bert/10"]["ratio"]
    monkeypatch.setattr(search, "measure", lambda *a: pytest.fail("measured again"))
    report = tmp_path / "SEARCH.md"
    search.main(["--quick", "--only", "gpt2/10,bert/10", "--out", str(tmp_path), "--report", str(report)])
    lines = report.read_text().splitlines()
    assert lines[-2].startswith("| gpt2/10 |") and lines[-1].startswith("| bert/10 |")
    assert f"| {record['ratio']:.1f} | {record['ratio_raced']:.1f} |" in lines[-2]


def test_sides_that_disagree_make_a_void_cell(tmp_path, monkeypatch):
    plain = PaperLoop.step
    wrong: Any = lambda self, now, given: [loss + 1e-3 for loss in plain(self, now, given)]  # noqa: E731
    monkeypatch.setattr(PaperLoop, "step", wrong)
    summary = search.main(["--quick", "--only", "bert/10", "--out", str(tmp_path)])
    assert "void" in summary["cells"]["bert/10"]
