"""The benchmark of meta-gradients measures what it says: python -m pytest tests/benchmarks/test_meta.py"""

import json

import pytest
import torch

from benchmarks import meta
from benchmarks.parts import cloned
from foreword.methods.meta.inner_loop import product

SETTING = meta.Setting(full="SMOKE", queries=2, pairs=1, steps=2)


def test_a_quick_run_ends_in_json_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    given = ["--quick", "--only", "tokens/1,clone", "--out", str(tmp_path), "--rows", ""]
    meta.main(given)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [*summary["cells"]] == ["tokens/1", "clone"]
    assert summary["cells"]["tokens/1"]["ratio"] > 10
    record = json.loads((tmp_path / "quick" / "clone.json").read_text())
    assert record["gap"] <= meta.TOLERANCE

    def again(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(meta, "measured", again)
    meta.main(given)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    meta.main([*given, "--report", str(tmp_path / "META.md")])
    lines = (tmp_path / "META.md").read_text().splitlines()
    assert lines[-2].startswith("| tokens/1 |") and "at least 20: " in lines[-2] and lines[-1].startswith("| clone |")
    with pytest.raises(SystemExit):
        meta.main(["--only", "tokens/7"])
    assert "the cells are memory, time/1" in capsys.readouterr().err


def test_a_clone_that_computes_something_else_voids_the_cell(monkeypatch):
    real = cloned.meta_gradient

    def wrong(*arguments):
        return [gradient + 0.1 * gradient.abs().max() for gradient in real(*arguments)]

    monkeypatch.setattr(cloned, "meta_gradient", wrong)
    record = {"cell": "clone", **meta.clone(SETTING)}
    assert meta.short(record) == {"void": "the gradients disagree"}


def test_the_published_schedule_is_counted_as_its_code_runs():
    """Five passes of 16 queries, three steps of 5 rows (8 of 25), queries read after every step, 512 columns."""
    assert meta.published(5, 75) == 153_600
    assert meta.published(25, 75) == 176_640


def test_tokens_are_those_that_enter_the_model(monkeypatch):
    """Against the lengths of the rows: support three times forward and twice for products (one pass is kept), query
    three times."""
    found = meta.tokens(SETTING, 1)
    case = meta.case_of(meta.replace(SETTING, tasks=1, full="SMOKE", queries=15), 1, meta.PAPER)
    lengths = [sum(len(row.encoded.ids_S) for row in rows) for rows in (case.support, case.query)]
    assert found["ours"] == 5 * lengths[0] + 3 * lengths[1]


def test_first_and_second_order_differ_and_a_graph_holds_more():
    case = meta.case_of(SETTING, 1)
    assert not torch.allclose(meta.gradient_of(case, 2, product), meta.gradient_of(case, 2, None))
    assert torch.allclose(meta.gradient_of(case, 2, product), meta.graph_of(case, 2), rtol=1e-3, atol=1e-7)
    assert meta.peak(SETTING, "chain", 1)["bytes"] > 1e7
