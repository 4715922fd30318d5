"""A name has one meaning in the package. Run: pytest tests/test_language.py"""

import ast
import importlib.util
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "foreword"


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure", ROOT / "docs" / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def twice(names: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The names that stand in more than one place, with the places."""
    places = defaultdict(list)
    for name, place in names:
        places[name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_class_name_is_defined_twice():
    names = [
        (node.name, f"{path.relative_to(ROOT)}:{node.lineno}")
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(names) > 300
    assert not twice(names), twice(names)
    assert twice([("A", "x"), ("B", "y"), ("A", "z")]) == {"A": ["x", "z"]}


def test_no_file_name_has_two_meanings():
    """The command line mirrors what it calls; `__init__` and the errors of the package are what they are anywhere."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and path.parent.name != "cli"]
    assert not twice([(path.stem, str(path.relative_to(ROOT))) for path in paths])


def test_imports_have_no_circle(measure):
    """Those that only the type checker sees are imports too."""
    paths = measure.modules()
    graph = {name: measure.imports(ast.parse(path.read_text()), set(paths)) for name, path in paths.items()}
    assert sum(map(len, graph.values())) > 1000
    assert not measure.circles(graph)
    first, second = [name for name in graph if graph[name]][:2]
    planted = {**graph, first: {second}, second: {first}}
    assert measure.circles(planted), "a planted circle is found"


def test_what_is_vague_is_found(measure):
    tree = ast.parse("def f(a):\n    found = a\n    b = 1\n    c = 2\n    d = 3\n    return found + b + c + d\n")
    assert measure.vague_names(tree) == [(2, "f", "found")]
    assert measure.vague_names(ast.parse("def f(a):\n    found = a\n    return found\n")) == []


def test_docstrings_of_functions_begin_with_a_verb(measure):
    documented, nouns = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                documented += 1
                if not measure.begins_with_verb(text):
                    nouns.append(f"{path.relative_to(ROOT)}:{node.lineno} {text.splitlines()[0]}")
    assert documented > 1_000
    assert not nouns, "\n".join(nouns)
    for text, begins in (
        ("Return the rows.", True),
        ("The rows.", False),
        ("Whether it is.", False),
        ("Gives it.", False),
    ):
        assert measure.begins_with_verb(text) == begins, text
