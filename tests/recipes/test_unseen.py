"""The recipe of unseen values runs, goes on, and writes its page. python -m pytest tests/recipes/test_unseen.py"""

import json

import unseen as recipe


def test_a_quick_run_writes_the_page_and_makes_nothing_twice(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    given = ["--quick", "--seeds", "1", "--out", str(tmp_path / "runs"), "--write", str(page)]
    assert recipe.main(given) == 0
    first = page.read_text()
    assert "6 seen, 6 unseen values, 6 unseen kinds" in first
    assert first.count("| prefix-tuning |") == first.count("| fine-tuning |") == len(recipe.METRICS)
    monkeypatch.setattr(recipe, "train", None)
    assert recipe.main(given) == 0 and page.read_text() == first
    # What is measured are the texts: with the references themselves nothing is missing.
    rows = recipe.read_task("builtin:listings").limit(train=8, validation=4, test=6).test
    kept = tmp_path / "runs" / "texts" / "prefix-tuning-0-listings.json"
    kept.write_text(json.dumps([row.targets[0] for row in rows]))
    assert recipe.main(given) == 0
    right = [line for line in page.read_text().splitlines() if line.startswith("| prefix-tuning |")]
    assert right[0].startswith("| prefix-tuning | 100.0 ") and right[1].startswith("| prefix-tuning | 0.0 ")
