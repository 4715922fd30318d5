"""Imports go one way, and `import foreword` stays light. Run: python -m pytest tests/test_layers.py"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "foreword"
ORDER = ["core", "models", "tasks", "inference", "interop", "training", "methods", "evaluation", "serving", "cli"]
# Wings that stand before another and may still not be imported by it.
FORBIDDEN = {("serving", "training"), ("serving", "methods"), ("serving", "evaluation")}
FORBIDDEN |= {("interop", "inference"), ("training", "interop"), ("methods", "interop")}
# A library and the only places (path prefixes) that may import it.
HOMES = {
    "transformers": ("models/hf/", "interop/vllm_client.py"),  # the client is a file that `foreword export` copies
    "peft": ("methods/baselines/lora",),
    "torchao": ("models/hf/",),
    "matplotlib": ("evaluation/plots",),
    "click": ("cli/",),
    "rich": ("cli/",),
    "sklearn": ("methods/", "inference/"),
    "datasets": ("tasks/",),
    "pandas": ("tasks/",),
    "pyarrow": ("tasks/",),
    "fastapi": ("serving/app/", "cli/serve.py"),
    "starlette": ("serving/app/",),
    "pydantic": ("serving/app/",),
    "prometheus_client": ("serving/app/",),
    "uvicorn": ("serving/run.py", "cli/serve.py"),
    "ray": ("serving/replicas.py",),
    "httpx": ("methods/instructions/remote.py",),
    "sacrebleu": ("tasks/corpus_metrics.py",),
    "rouge_score": ("tasks/corpus_metrics.py",),
    "nltk": ("none/",),
}
CORE = {"torch", "jaxtyping", "safetensors", "foreword"}
HEAVY = ["transformers", "matplotlib", "click", "rich", "peft", "torchao", "sklearn", "datasets", "pandas", "torch"]
HEAVY += ["scipy", "sacrebleu", "rouge_score", "nltk"]


def imports(source: str) -> list[str]:
    """Every module that the code imports, inside functions and `if TYPE_CHECKING` too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their layer"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def faults(path: str, source: str) -> list[str]:
    """The imports of one file (path within the package) that break a rule."""
    layer = path.split("/")[0]
    wrong = []
    for name in imports(source):
        top, *rest = name.split(".")
        if top == "foreword" and layer in ORDER and rest:
            other = rest[0]
            later = other in ORDER and ORDER.index(other) > ORDER.index(layer)
            if later or (layer, other) in FORBIDDEN or other not in [*ORDER, "errors"]:
                wrong.append(f"{path} imports {name}")
        elif top in HOMES and not path.startswith(HOMES[top]):
            wrong.append(f"{path} imports {name}")
        elif layer == "core" and top not in CORE and top not in sys.stdlib_module_names:
            wrong.append(f"{path} imports {name}")
    return wrong


def test_imports_go_one_way():
    wrong = [f for p in sorted(PACKAGE.rglob("*.py")) for f in faults(str(p.relative_to(PACKAGE)), p.read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "from foreword.models import base"),
        ("tasks/x.py", "def f():\n    import foreword.training.contract"),
        ("serving/x.py", "from foreword.methods.registry import find_method"),
        ("serving/x.py", "from foreword.training.contract import Method"),
        ("inference/x.py", "from foreword.training import loop"),
        ("training/x.py", "from foreword.methods import METHODS"),
        ("serving/engine.py", "import fastapi"),
        ("methods/x.py", "import transformers"),
        ("methods/x.py", "def f():\n    from transformers import pipeline"),
        ("core/x.py", "import numpy"),
        ("evaluation/x.py", "import rich.table"),
        ("interop/x.py", "import peft"),
        ("interop/x.py", "from foreword.evaluation import compare"),
        ("methods/x.py", "from foreword.interop import peft"),
    ],
)
def test_planted_faults_are_found(path, source):
    assert faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("methods/x.py", "from foreword.core.prompts import Bank\nfrom foreword.errors import ConfigError"),
        ("models/hf/x.py", "import transformers"),
        ("cli/x.py", "import click\nfrom foreword.serving import app"),
    ],
)
def test_allowed_imports_pass(path, source):
    assert not faults(path, source)


def test_every_folder_is_a_known_layer():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and list(p.glob("*.py"))}
    assert folders <= set(ORDER)


def test_import_is_light():
    code = f"import sys, foreword; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_resolve():
    code = "import foreword; [getattr(foreword, n) for n in foreword.__all__]; print(len(foreword.__all__))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert int(result.stdout or 0) > 10, result.stderr


def test_unknown_name_is_told():
    code = "import foreword; foreword.lod"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "no attribute 'lod'; it offers" in result.stderr
