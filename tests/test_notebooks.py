"""The notebooks run from top to bottom and show tables. Run: python -m pytest tests/test_notebooks.py"""

import ast
import json
from pathlib import Path

import pytest

from foreword import Task
from foreword.core.html import html_table

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
# What makes them quick; the long run takes them as they are.
SHORTER = {"foreword-mini": "foreword-tiny", "steps=100": "steps=4", "steps=40": "steps=4", "steps=10": "steps=2"}


def cells(name: str) -> list[str]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(code: list[str]) -> list[object]:
    """The last value of each cell, as a notebook shows it."""
    names: dict[str, object] = {}
    shown = []
    for cell in code:
        *body, last = ast.parse(cell).body
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        else:
            exec(compile(cell, "cell", "exec"), names)
    return shown


def test_there_are_three_and_none_has_outputs():
    assert NAMES == ["comparing_methods", "first_prompt", "one_start"]
    for name in NAMES:
        notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
        assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_short(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = cells(name)
    for long, short in SHORTER.items():
        code = [cell.replace(long, short) for cell in code]
    shown = run(code)
    assert any(hasattr(value, "_repr_html_") and "<table>" in value._repr_html_() for value in shown)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run(cells(name))
    if name == "first_prompt":
        manual, learnt = [value["accuracy"] for value in shown if isinstance(value, dict) and "accuracy" in value]
        assert learnt > manual + 0.1


def test_what_rows_hold_is_no_markup():
    rows = [{"text": f"<b>bold</b> & <script>{i}</script>", "label": "<i>"} for i in range(8)]
    rows += [{"text": f"plain {i}", "label": "b"} for i in range(8)]
    shown = Task(rows)._repr_html_()
    assert "&lt;script&gt;" in shown or "&lt;b&gt;" in shown
    assert not any(tag in shown for tag in ("<b>", "<script>", "<i>"))
    assert html_table(["<x>"], [["y" * 500]], "<z>").count("<") == html_table(["x"], [["y"]], "z").count("<")
