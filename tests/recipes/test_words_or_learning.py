"""python -m pytest tests/recipes/test_words_or_learning.py

The recipe of the curve runs, goes on, and says what is missing.
"""

from pathlib import Path

import words_or_learning as recipe


def page_of(folder: Path) -> str:
    return (folder / "page.md").read_text()


def test_a_quick_run_makes_the_page_and_the_picture_and_goes_on_where_it_stopped(tmp_path, capsys):
    given = ["--quick", "--out", str(tmp_path / "runs"), "--write", str(tmp_path / "page.md")]
    assert recipe.main([*given, "--only", "*/0/*", "--only", "*/few-shot, *"]) == 0
    page = page_of(tmp_path)
    assert "Not run yet" not in page  # of the cells that were asked for
    assert recipe.main([*given, "--page"]) == 0
    assert "Not run yet, or not with every seed: 3 of 12 cells, in builtin:sentiment/2." in page_of(tmp_path)
    lines = (tmp_path / "runs" / "results.jsonl").read_text().splitlines()
    assert recipe.main(given) == 0
    now = (tmp_path / "runs" / "results.jsonl").read_text().splitlines()
    assert now[: len(lines)] == lines
    page = page_of(tmp_path)
    assert "Not run yet" not in page
    for name in (*recipe.ZERO, *recipe.WORDS, *recipe.LEARNT):
        assert f"| {name} |" in page
    assert "prefix-tuning against the hand-written words: " in page
    assert (tmp_path / "page.png").stat().st_size > 10_000
    again = page
    assert recipe.main([*given, "--page"]) == 0
    assert page_of(tmp_path) == again


def test_cells_are_listed_and_wrong_patterns_told(capsys):
    assert recipe.main(["--list", "--only", "trec/16/*"]) == 0
    assert "trec/16/few-shot, auto" in capsys.readouterr().out
    assert recipe.main(["--only", "nothing/*"]) == 2
