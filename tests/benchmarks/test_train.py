"""The benchmark measures what it says: both sides compute the same, or the cell is void; operations are counted.

python -m pytest tests/benchmarks/test_train.py
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import train
from benchmarks.parts import measure, report, shapes, sides
from benchmarks.parts.floor import floor
from benchmarks.parts.measure import CELLS, Cell, Setting
from foreword.training.loop import Run, batch_rows, fit
from tests.largest import Largest

# PEFT asks transformers for a property that it renames.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
METHODS: tuple[sides.Method, ...] = ("prompt", "prefix", "prefix-mlp")


def sides_of(shape: shapes.Shape, method: sides.Method, rows: list[dict[str, str]]) -> tuple[Any, Run, sides.Theirs]:
    model = shapes.build(shape, torch.float32, "cpu")
    lm = shapes.wrapped(model)
    run = sides.our_run(lm, shapes.task_of(rows), method, steps=3, batch_size=8)
    return lm, run, sides.Theirs(model, run, method, "buckets", lm.batch_tokens)


def one_step(lm: Any, run: Run) -> None:
    """One step of the library's own loop."""

    class StopError(Exception):
        pass

    def stop(joint: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        fit(lm, [run], after_step=stop)


@pytest.mark.slow
def test_a_quick_run_ends_in_json_and_a_document_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    names = "gpt2/prompt/buckets,bert/prefix-mlp/examples,tenants/gpt2/prompt-tuning"
    given = ["--quick", "--only", names, "--out", str(tmp_path), "--report", str(tmp_path / "R.md"), "--rows", ""]
    train.main(given)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [*summary["cells"]] == names.split(",")
    [file] = tmp_path.glob("*/gpt2_prompt_buckets.json")
    record = json.loads(file.read_text())
    assert record["gate"]["gap"] < 1e-5
    assert record["same"]["gap"] < 1e-5
    assert record["ratio"]["low"] <= record["ratio"]["median"] <= record["ratio"]["high"]
    assert 0 < record["flops"]["floor"] <= record["flops"]["ours"] < record["flops"]["theirs"]
    assert record["peak"]["ours"]["bytes"] > 1e8
    document = (tmp_path / "R.md").read_text()
    assert all(name in document for name in names.split(","))

    def measured_again(*_: Any) -> None:
        raise AssertionError("a finished cell was measured again")

    monkeypatch.setattr(measure, "speed", measured_again)
    train.main(given)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    with pytest.raises(AssertionError, match="measured again"):
        train.main([*given, "--again"])


def test_unknown_cells_are_refused_and_the_known_ones_listed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--only", "gpt3/prompt/buckets"])
    assert "there is no cell 'gpt3/prompt/buckets'; the cells are gpt2/prompt/examples" in capsys.readouterr().err
    train.main(["--list", "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[:-1] == [f"{name} " for name in train.NAMES]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_a_cell_whose_losses_disagree_is_void_and_not_timed(family, method, monkeypatch):
    """The control of the gate: one number of PEFT's start is another."""
    setting = Setting(**{**measure.QUICK, "gate": 4})
    real: Callable[..., None] = sides.Theirs._start

    def off(self: sides.Theirs, leaves: Any) -> None:
        real(self, leaves)
        self.model.prompt_encoder["default"].embedding.weight[0, :4] += 5.0

    monkeypatch.setattr(sides.Theirs, "_start", off)
    record = measure.speed(Cell(family, method, "buckets"), setting)
    assert "void" in record
    assert "ratio" not in record
    assert record["gate"]["gap"] > record["gate"]["allowed"]
    shown = {
        "cell": f"{family}/{method}/buckets",
        "machine": measure.machine("cpu"),
        "setting": vars(setting),
        **record,
    }
    assert "void: the loss curves" in report.render([shown])


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_takes_no_more_operations_than_the_closed_form_and_two_percent(family, method):
    """Rows of one length, since padded columns of attention are the only padding that is left."""
    shape = shapes.Shape(family, layers=12, width=256, heads=4, vocab=30522)
    rows = [{"text": " ".join(["film"] * 24), "label": label} for label in ("negative", "positive")] * 20
    lm, run, theirs = sides_of(shape, method, [{**r, "text": f"{r['text']} {i}"} for i, r in enumerate(rows)])
    flops = measure.count(lm, run, theirs)
    chosen = [run.train.encoded[i] for i in batch_rows(run, 0)]
    least = floor(shape, method, chosen, sides.LENGTH)
    assert len({len(e.ids_S) for e in chosen}) == 1
    assert 0.98 * least < flops["ours"] <= 1.02 * least
    assert flops["theirs"] > 1.5 * least  # the control


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_of_a_training_step_holds_every_position_s_vocabulary(family, method):
    shape = shapes.SMOKE[family]
    lm, run, theirs = sides_of(shape, method, shapes.sentences(None, 40))
    texts = [run.train.encoded[i] for i in batch_rows(run, 0)]
    whole = sum(int((e.slot_S < 0).sum()) for e in texts) * shape.vocab
    with Largest() as ours:
        one_step(lm, run)
    with Largest() as others:
        theirs.step(0)
    assert ours.size <= shape.vocab * shape.width  # rows of the output matrix are taken, never (B, S, V)
    assert ours.size < whole / 4
    assert others.size >= whole  # the control: PEFT's step does make it


def test_every_cell_has_a_target_and_a_losing_cell_says_so():
    assert {cell.name for cell in CELLS} == {"/".join(key) for key in measure.TARGETS}
    record = {"cell": "gpt2/prompt/examples", "ratio": {"median": 1.99}}
    assert report.verdict(record) == "**no**: < 2x"
    record = {
        "cell": "gpt2/prompt/examples", "ratio": {"median": 2.01},
        "peak": {"ours": {"bytes": 5.0}, "theirs": {"bytes": 4.0}},
    }  # fmt: skip
    assert report.verdict(record) == "**no**: peak"


def test_intervals_hold_the_median_of_planted_ratios():
    steps = [(1.0, ratio, 0.5, 0.5) for ratio in (1.9, 2.0, 2.1, 2.0, 1.8, 2.2, 2.0)]
    found = measure.timed(steps, {"ours": 2.0, "theirs": 4.0, "floor": 1.0}, 4.0, 8)
    assert found["ratio"]["median"] == pytest.approx(2.0)
    assert 1.8 <= found["ratio"]["low"] <= 2.0 <= found["ratio"]["high"] <= 2.2
    assert found["ours"]["share_of_rate"] == pytest.approx(0.5)
    assert found["ours"]["rows_per_second"] == pytest.approx(8.0)
