"""Comparisons with a real (tiny) model and the real methods, and the recipe of the README's table.

Run: python -m pytest tests/evaluation/test_end_to_end.py
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from foreword.core.artefact import Artefact
from foreword.evaluation.compare import compare
from foreword.evaluation.records import Store
from foreword.inference.scoring import score_rows
from foreword.models.load import load
from foreword.tasks.label_metrics import log_probabilities
from foreword.training.contract import Progress, Step
from tests.planted import planted_task

ROOT = Path(__file__).parents[2]
SHORT = {"steps": 2, "batch_size": 4, "eval_every": 1}


def test_methods_on_a_tiny_model_and_their_artefacts_say_the_same_again(tmp_path: Path) -> None:
    task = planted_task(3, train=80, validation=16, test=40)
    lm = load("foreword-tiny")
    methods = ("manual", "bag-of-words", "linear-probe", "prompt-tuning", "prefix-tuning")
    options = {"prompt-tuning": {**SHORT, "length": [2, 3]}, "prefix-tuning": {**SHORT, "length": 2}}
    found = compare(lm, task, methods, out=tmp_path, seeds=2, options=options)
    assert not found.failures
    accuracy = {line.method: line.metrics["accuracy"] for line in found.lines}
    assert accuracy["bag-of-words"].low > 0.9, "the planted rule is one of words"
    assert next(line for line in found.lines if line.method == "bag-of-words").versus["manual"].shown
    store = Store(tmp_path)
    for record in found.records:
        assert record.artefact is not None
        artefact = Artefact.load(tmp_path / record.artefact)
        again = log_probabilities(score_rows(lm, [(artefact, task.test)])[0].double().numpy())
        recorded = store.predictions(record)
        assert recorded is not None
        np.testing.assert_allclose(recorded[0], again, atol=1e-4)
    lines = (tmp_path / "results.jsonl").read_bytes()
    again = compare(lm, task, methods, out=tmp_path, seeds=2, options=options)
    assert {r.id: r.metrics for r in again.records} == {r.id: r.metrics for r in found.records}
    assert (tmp_path / "results.jsonl").read_bytes() == lines


def test_ctrl_c_in_the_middle_of_a_stack_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """The second seed's third step is the last one told; what follows comes from the checkpoint."""
    task = planted_task(5, train=40, validation=16, test=20)
    options = {"prompt-tuning": {"steps": 6, "batch_size": 4, "eval_every": 2, "length": 2}}
    seen: list[Step] = []

    def stop(step: Step) -> None:
        seen.append(step)
        if (step.step, step.job) == (3, 1):
            raise KeyboardInterrupt

    def run(folder: str, progress: Progress | None = None) -> None:
        lm = load("foreword-tiny")
        compare(lm, task, ["prompt-tuning"], out=tmp_path / folder, seeds=2, options=options, progress=progress)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop)
    assert list((tmp_path / "parts" / "checkpoints").iterdir())
    run("parts", seen.append)
    assert [step.step for step in seen if step.job == 0] == [1, 2, 3, 4, 5, 6]
    for kind in ("results.jsonl", "predictions", "artefacts"):
        assert bytes_under(tmp_path / "parts" / kind) == bytes_under(tmp_path / "whole" / kind)


def bytes_under(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe with a tiny model and two steps."""
    module = importlib.import_module("real_data")
    monkeypatch.setattr(module, "MODELS", {"masked": "foreword-tiny", "causal": "foreword-tiny-causal"})
    gradient = ("prompt-tuning", "prefix-tuning", "lora", "fine-tuning")
    monkeypatch.setattr(module, "SCHEDULE", {f"*/{m}": dict(SHORT) for m in gradient} | {"*/16/*": {}})
    monkeypatch.setattr(module, "TASKS", ("sst2", "sick"))
    monkeypatch.setattr(module, "SETTINGS", {"2": 2, "full": 1})
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folders laid out as the real ones are."""
    for name, fields, labels in (
        ("sst2", ("text",), ("negative", "positive")),
        ("sick", ("text_a", "text_b"), ("contradiction", "entailment", "neutral")),
    ):
        (tmp_path / name).mkdir()
        for split, count in (("train", 24), ("validation", 9), ("test", 12)):
            rows = [{f: f"{split} {f} {i}" for f in fields} | {"label": labels[i % len(labels)]} for i in range(count)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name / f"{split}.jsonl").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_the_recipe_runs_cells_and_fills_its_page(
    recipe: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "results.md"
    common = ["--data", str(data), "--out", str(tmp_path / "runs"), "--write", str(page)]
    assert recipe.main([*common, "--only", "masked/*/2/*"]) == 0
    text = page.read_text()
    assert text.count("| prefix-tuning |") == 3, "once in the accuracy table, once for each task"
    assert "sst2 (4 train, 12 test) | sick (6 train, 12 test)" in text
    first = (tmp_path / "runs" / "results.jsonl").read_bytes()
    page.write_text(text.replace("# Results", "# Results\n\nKept by hand."))
    assert recipe.main([*common, "--only", "masked/sst2/*"]) == 0
    grown = (tmp_path / "runs" / "results.jsonl").read_bytes()
    assert grown.startswith(first), "nothing that was there is made again"
    assert len(grown.splitlines()) == len(first.splitlines()) + len(recipe.ORDER)
    text = page.read_text()
    assert "Kept by hand." in text
    assert text.count("filled by recipes/real_data.py") == 1
    assert "all training rows, 1 seed**" in text
    recipe.SCHEDULE["*/lora"] = {**SHORT, "steps": 3}
    capsys.readouterr()
    assert recipe.main([*common, "--table"]) == 0
    assert "| lora |" not in capsys.readouterr().out, "results of another schedule are not shown"


def test_the_recipe_tunes_on_development_rows(
    recipe: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--out", str(tmp_path / "tuning"), "--tune", "-o", "length=1,2"]
    assert recipe.main([*arguments, "--only", "causal/sst2/2/prompt-tuning"]) == 0
    told = capsys.readouterr().out
    assert told.count("causal/sst2/2/prompt-tuning  dev") == 2
    assert "{'length': 1}" in told
    assert "{'length': 2}" in told
    assert not (tmp_path / "tuning" / "predictions").exists(), "no test row was read"


def test_the_recipe_lists_and_refuses(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["--list"]) == 0
    assert len(capsys.readouterr().out.split()) == 2 * 2 * 2 * len(recipe.ORDER)
    assert recipe.main(["--only", "nothing/*"]) == 2
    missing = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "x"), "--only", "*/manual"]
    capsys.readouterr()
    assert recipe.main(missing) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe.main(["-o", "length=1,2"])
