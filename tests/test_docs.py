"""Documents that are made from the code are up to date. Run: python -m pytest tests/test_docs.py"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def fill():
    spec = importlib.util.spec_from_file_location("fill", ROOT / "docs" / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_is_up_to_date():
    made = subprocess.run([sys.executable, "-m", "foreword.cli.help"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "help.md").read_text() == made.stdout, "run: python docs/fill.py"


def test_readme_tree_is_up_to_date(fill):
    assert fill.tree() in (ROOT / "README.md").read_text(), "run: python docs/fill.py"


def test_every_module_says_what_it_is(fill):
    silent = [p for p in (ROOT / "foreword").rglob("*.py") if p.name != "__init__.py" and not fill.comment(p)]
    assert not silent, silent


def test_readme_tree_lists_every_module_once(fill):
    names = [line.split("  ")[0] for line in (re.sub(r"^ +", "", x) for x in fill.tree().splitlines())]
    for path in (ROOT / "foreword").rglob("*.py"):
        if path.name != "__init__.py":
            assert sum(path.name == n or n.endswith(f"/{path.name}") for n in names) >= 1, path


def test_filling_needs_its_markers(fill):
    with pytest.raises(SystemExit, match="no markers"):
        fill.filled("no markers here", "tree", "x")
    text = "a\n<!-- tree: filled by docs/fill.py -->\nold\n<!-- end of tree -->\nb"
    assert fill.filled(text, "tree", "new") == text.replace("old", "new")


def test_documents_speak_of_the_project_alone():
    """No path of somebody's machine in what is shipped."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "foreword").rglob("*.py"), ROOT / "Makefile"]
    found = [str(p) for p in files if re.search(r"(?<![\w.])/(work|home|root|tmp|opt)/\w", p.read_text())]
    assert not found, found


def test_makefile_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) <= targets


def test_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    """As printed, but with the tiny model and two steps."""
    # The other one needs a server: tests/serving/test_readme.py.
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace('"gpt2"', '"foreword-tiny-causal"').replace("length=20", "length=20, steps=2")
    rows = [{"sentence": f"{word} {i}", "label": label} for i in range(30) for word, label in (("good", 1), ("bad", 0))]
    names = {"rows": rows}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert (tmp_path / "artefacts" / "x" / "foreword.json").is_file()
    assert names["art"].predict(["fine film"])[0].label in ("0", "1")


def test_oldest_transformers_is_one_number():
    """pyproject.toml, the Makefile's matrix and the check at load say the same version."""

    def said(file: str, pattern: str) -> str:
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1]

    oldest = said("Makefile", r"^OLDEST := ([\d.]+)$")
    assert said("foreword/models/hf/loading.py", r'^OLDEST = .*"([\d.]+)"') == oldest
    assert oldest.startswith(said("pyproject.toml", r'"transformers>=([\d.]+)"'))
