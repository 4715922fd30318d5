"""The benchmark of shared demonstrations: a gate that can fail, a count of tokens, and a run that goes on.

python -m pytest tests/benchmarks/test_few_shot.py
"""

import json

import pytest
import torch

from benchmarks import few_shot


def quick(tmp_path, *more: str) -> list[str]:
    return ["--quick", "--rows", "", "--out", str(tmp_path), "--report", str(tmp_path / "F.md"), *more]


def test_a_quick_run_ends_in_json_and_a_document_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    few_shot.main(quick(tmp_path, "--only", "gpt2/4,gpt2/16"))
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [*summary["cells"]] == ["gpt2/4", "gpt2/16"]
    for name in summary["cells"]:
        [file] = tmp_path.glob(f"few-shot-quick-*/{name.replace('/', '_')}.json")
        record = json.loads(file.read_text())
        assert record["gate"]["gap"] <= 1e-4
        assert record["tokens"]["ours"] < record["tokens"]["theirs"] / 2
        assert record["ratio"]["low"] <= record["ratio"]["median"] <= record["ratio"]["high"]
        assert name in (tmp_path / "F.md").read_text()

    def again(*_: object) -> None:
        raise AssertionError("a finished cell was measured again")

    monkeypatch.setattr(few_shot, "measured", again)
    few_shot.main(quick(tmp_path, "--only", "gpt2/4,gpt2/16"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary


def test_a_cell_whose_scores_differ_is_void_and_not_timed(tmp_path, monkeypatch):
    """The control of the gate: the shared side is moved by a little more than is allowed."""
    real = few_shot.shared
    moved = torch.tensor([0.0, 3e-4])
    monkeypatch.setattr(few_shot, "shared", lambda lm, encoded: real(lm, encoded) + moved)
    few_shot.main(quick(tmp_path, "--only", "gpt2/4"))
    record = json.loads(next(tmp_path.glob("few-shot-quick-*/gpt2_4.json")).read_text())
    assert "void" in record
    assert "ratio" not in record
    assert "void: the scores disagree" in (tmp_path / "F.md").read_text()


def test_unknown_cells_are_refused_and_a_losing_cell_says_so(capsys):
    with pytest.raises(SystemExit):
        few_shot.main(["--only", "gpt2/3"])
    assert "there is no cell 'gpt2/3'; the cells are mini/4" in capsys.readouterr().err
    assert few_shot.verdict({"cell": "mini/16", "ratio": {"median": 4.9}}) == "**no**: < 5x"
    assert few_shot.verdict({"cell": "mini/16", "ratio": {"median": 5.1}}) == "reached"
