"""python -m pytest tests/recipes/test_prefix_tuning_e2e.py

The recipe of prefix tuning on E2E runs, goes on, and says what is missing.
"""

import prefix_tuning_e2e as recipe
import pytest


@pytest.mark.slow
def test_a_quick_run_makes_the_page_and_goes_on_where_it_stopped(tmp_path, capsys):
    given = ["--quick", "--out", str(tmp_path / "runs"), "--write", str(tmp_path / "page.md")]
    assert recipe.main([*given, "--only", "main/*/manual", "--only", "main/*/prefix"]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "Not run yet, or not with every seed: main/8/embeddings, main/8/fine-tuning" in page
    assert "| prefix |" in page and "manual < embeddings" not in page
    kept = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("results.jsonl")}
    assert len(kept) == 2
    assert recipe.main([*given, "--only", "main/*", "--only", "few/*"]) == 0
    assert all(p.read_bytes() == data for p, data in kept.items())
    page = (tmp_path / "page.md").read_text()
    assert "manual < embeddings: " in page and "embeddings < prefix: " in page and "- a person: " in page
    assert "as an uncased model writes them" in page and "init/4/random" in page
    assert recipe.main([*given, "--page"]) == 0
    assert (tmp_path / "page.md").read_text() == page


def test_the_number_to_expect_stands_first_and_gpt2_gets_the_papers_settings(capsys):
    assert "expect BLEU 69.7" in recipe.__doc__.splitlines()[0]
    paper = recipe.setting_of(recipe.parse(["--model", "gpt2-medium", "--full"]))
    assert (paper.prefix["learning_rate"], paper.prefix["length"], paper.common["batch_size"]) == (8e-5, 5, 10)
    assert paper.decoding.num_beams == 5 and recipe.parse(["--full"]).rows is None
    assert recipe.main(["--list", "--only", "few/50/*"]) == 0
    assert capsys.readouterr().out.split() == ["few/50/prefix", "few/50/fine-tuning"]
    assert recipe.main(["--only", "nothing/*"]) == 2


@pytest.mark.parametrize("folder", ["none", "e2e_nlg"])
def test_data_that_is_not_there_is_told(tmp_path, capsys, folder):
    (tmp_path / folder).mkdir()
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--model", "foreword-tiny-causal"]
    assert recipe.main([*given, "--only", "main/*/manual"]) == 2
    assert "e2e_nlg" in capsys.readouterr().err
