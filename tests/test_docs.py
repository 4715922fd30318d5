"""Documents that are made from the code are up to date, and links lead somewhere. Run: pytest tests/test_docs.py"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def fill():
    spec = importlib.util.spec_from_file_location("fill", ROOT / "docs" / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_is_up_to_date():
    made = subprocess.run([sys.executable, "-m", "foreword.cli.help"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "help.md").read_text() == made.stdout, "run: python docs/fill.py"


def test_architecture_is_up_to_date(fill):
    assert (ROOT / "docs" / "architecture.md").read_text() == fill.architecture(), "run: python docs/fill.py"
    assert (ROOT / "docs" / "layers.svg").read_text() == fill.layers_picture(), "run: python docs/fill.py"


def test_the_page_of_routes_is_up_to_date(fill):
    made = fill.http_page(fill.openapi())
    assert (ROOT / "docs" / "http.md").read_text() == made, "run: python docs/fill.py"
    assert "## POST /v1/classify" in made and "| `model` | string | required." in made


def test_the_layers_stand_in_one_order(fill):
    spec = importlib.util.spec_from_file_location("layers", ROOT / "tests" / "test_layers.py")
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    assert [*fill.WINGS] == layers.ORDER


def test_every_module_says_what_it_is_in_a_whole_sentence(fill):
    modules = [p for p in (ROOT / "foreword").rglob("*.py") if p.name != "__init__.py"]
    wrong = [str(p.relative_to(ROOT)) for p in modules if not re.match(r".+[.!?]$", fill.first_sentence(p))]
    assert not wrong, wrong


def test_a_sentence_is_not_cut(fill, tmp_path):
    path = tmp_path / "x.py"
    path.write_text('"""Do one thing; and, by Li et al. 2021, another: both.\n\nMore."""\n')
    assert fill.first_sentence(path) == "Do one thing; and, by Li et al. 2021, another: both."
    path.write_text('"""Do it. Then rest."""\n')
    assert fill.first_sentence(path) == "Do it."


def test_architecture_lists_every_module_once(fill):
    page = fill.architecture()
    for path in (ROOT / "foreword").rglob("*.py"):
        if path.name != "__init__.py":
            assert page.count(f"](../{path.relative_to(ROOT).as_posix()}) |") == 1, path


def test_filling_needs_its_markers(fill):
    with pytest.raises(SystemExit, match="no markers"):
        fill.filled("no markers here", "demo", "x")
    text = "a\n<!-- demo: filled by docs/fill.py -->\nold\n<!-- end of demo -->\nb"
    assert fill.filled(text, "demo", "new") == text.replace("old", "new")


def test_the_front_page_shows_columns_of_the_whole_table(fill):
    results = (ROOT / "docs" / "results-overview.md").read_text()
    whole = results.partition("<!-- demo-full: filled by docs/fill.py -->")[2].partition("<!-- end of demo-full -->")[0]
    short = README.partition("<!-- demo: filled by docs/fill.py -->")[2].partition("<!-- end of demo -->")[0]
    assert fill.shortened(whole.strip()) == short.strip()
    assert short.count("|") > 30


def test_documents_speak_of_the_project_alone():
    """No path of somebody's machine in what is shipped."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "foreword").rglob("*.py"), ROOT / "Makefile"]
    wrong = [str(p) for p in files if re.search(r"(?<![\w.])/(work|home|root|tmp|opt)/\w", p.read_text())]
    assert not wrong, wrong


def test_makefile_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"test", "demo", "docs", "browser"} <= named <= targets


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.split()) <= 900
    links = re.findall(r"\]\(([^()#]+)", README)
    assert len(links) > 30
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing, missing


def test_python_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """As printed, but with the tiny model and two steps."""
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("foreword-mini", "foreword-tiny").replace("steps=100", "steps=2"), {})
    accuracy, label = capsys.readouterr().out.split()
    assert 0 <= float(accuracy) <= 1 and label in ("positive", "negative")
    assert (tmp_path / "artefacts" / "reviews" / "foreword.json").is_file()


def test_oldest_transformers_is_one_number():
    """pyproject.toml, the Makefile's matrix and the check at load say the same version."""

    def stated(file: str, pattern: str) -> str:
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1]

    oldest = stated("Makefile", r"^OLDEST := ([\d.]+)$")
    assert stated("foreword/models/hf/loading.py", r'^OLDEST = .*"([\d.]+)"') == oldest
    assert oldest.startswith(stated("pyproject.toml", r'"transformers>=([\d.]+)"'))
