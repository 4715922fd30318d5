"""Measure the structure and the language of the code.

Run `python docs/measure.py [ROOT]` for the figures, `python docs/measure.py ROOT FOLDER` for what to mend in a folder.
"""

import ast
import re
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(sys.argv[1] if __name__ == "__main__" and len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
PACKAGE = ROOT / "foreword"
# Docstrings that begin with one of these begin with a noun, an article or a relative clause instead of a verb.
NOT_VERBS = set(
    "a an the what which where how whether who whose why when while as if its their his it this these those that in on "
    "of off from with without by for at to into over under up one two three no not none all any each every some "
    "several many much same so such only also here there names name rows row text texts whatever".split()
)
ENDING_IN_ED = {"embed", "feed", "need", "seed"}
VAGUE = {"found", "told", "given", "made", "asked", "own", "kept", "said", "some", "how"}
SCOPE = 3  # lines in which a vague name is read at a glance


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = ["foreword." + str(path.relative_to(PACKAGE))[:-3].replace("/", ".") for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Return the modules of the package that a module imports, inside functions and for types alone included."""
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            targets |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            targets |= {a.name for a in node.names}
    return targets & known


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other (strongly connected components of two or more)."""

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reached = {name: reach(name) for name in graph}
    groups = {tuple(sorted(o for o in reached[n] if n in reached[o])) for n in graph if n in reached[n]}
    return [list(group) for group in sorted(groups)]


def levels(inside: dict[str, set[str]]) -> int:
    """Return the number of modules on the longest path of imports; a circle counts once."""
    depth: dict[str, int] = {}

    def of(name: str, above: frozenset[str]) -> int:
        if name not in depth:
            below = [of(o, above | {name}) for o in inside[name] if o not in above and o != name]
            depth[name] = 1 + max(below, default=0)
        return depth[name]

    return max((of(name, frozenset()) for name in inside), default=0)


def first_word(text: str) -> str:
    """Return the first word of a docstring, without its marks."""
    match = re.match(r"[\W_]*([A-Za-z']+)", text)
    return match.group(1).lower() if match else ""


def begins_with_verb(text: str) -> bool:
    """Return whether a docstring's first word may be an imperative verb."""
    word = first_word(text)
    plain = word not in NOT_VERBS and (word == "apply" or not word.endswith(("ing", "'s", "ly")))
    return (
        bool(word)
        and plain
        and not (word.endswith("s") and not word.endswith(("ss", "us")))
        and not (word.endswith("ed") and word not in ENDING_IN_ED)
    )


def vague_names(tree: ast.AST) -> list[tuple[int, str, str]]:
    """Return line, function and name of every vague local name that is in use over more than `SCOPE` lines."""
    places = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines: dict[str, list[int]] = defaultdict(list)
        bound = set()
        for node in own_nodes(function):
            if isinstance(node, ast.arg):
                name, is_bound = node.arg, True
            elif isinstance(node, ast.Name):
                name, is_bound = node.id, isinstance(node.ctx, ast.Store)
            else:
                continue
            lines[name].append(node.lineno)
            if is_bound:
                bound.add(name)
        for name in sorted(bound & VAGUE):
            if max(lines[name]) - min(lines[name]) > SCOPE:
                places.append((min(lines[name]), function.name, name))
    return places


def own_nodes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.AST]:
    """Return the nodes of a function; of functions inside it, the names that they do not bind themselves."""
    nodes: list[ast.AST] = []
    todo: list[ast.AST] = [function.args, *function.body]
    while todo:
        node = todo.pop()
        nodes.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = own_nodes(node)
            local = {n.arg for n in inner if isinstance(n, ast.arg)}
            local |= {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            nodes += [n for n in inner if isinstance(n, ast.Name) and n.id not in local]
        else:
            todo += ast.iter_child_nodes(node)
    return nodes


def report(folder: Path) -> None:
    """Print what the language of a folder's files still needs."""
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
        tree = ast.parse(path.read_text())
        for line, function, name in vague_names(tree):
            print(f"{path}:{line}: {function} binds {name!r}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text and not begins_with_verb(text):
                    print(f"{path}:{getattr(node, 'lineno', 1)}: docstring: {text.splitlines()[0]}")
        size = path.read_text().count("\n")
        if size > 300:
            print(f"{path}: {size} lines")


def main() -> None:
    """Print the figures."""
    if len(sys.argv) > 2:
        report(Path(sys.argv[2]))
        return
    paths = modules()
    trees = {name: ast.parse(path.read_text()) for name, path in paths.items()}
    graph = {name: imports(tree, set(paths)) for name, tree in trees.items()}
    wings = sorted({name.split(".")[1] for name in paths if name.count(".") > 1})
    print("wing            files on top  files  levels  arrows")
    for wing in wings:
        prefix = f"foreword.{wing}"
        members = {n for n in paths if n == prefix or n.startswith(prefix + ".")}
        top = [p for p in (PACKAGE / wing).glob("*.py") if p.name != "__init__.py"]

        def room(name: str, prefix: str = prefix) -> str:
            """Return the file or folder on the wing's top level that holds a module."""
            return ".".join(name.split(".")[:3]) if name != prefix else prefix

        inside: dict[str, set[str]] = defaultdict(set)
        for name in members - {prefix}:
            inside[room(name)] |= {room(o) for o in graph[name] & members} - {room(name), prefix}
        arrows = sum(map(len, inside.values()))
        print(f"{wing:15} {len(top):12} {len(members):6} {levels(dict(inside)):7} {arrows:7}")
    rings = circles(graph)
    print(f"circles of imports: {len(rings)}", *(" <-> ".join(r) for r in rings), sep="\n  " if rings else " ")

    classes = Counter(n.name for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef))
    twice = {name: count for name, count in classes.items() if count > 1}
    stems = Counter(p.stem for n, p in paths.items() if p.stem != "__init__" and not n.startswith("foreword.cli"))
    print(f"class names defined more than once: {len(twice)}")
    print(f"file stems used more than once (command line aside): {sum(c > 1 for c in stems.values())}")

    functions = [
        n for t in trees.values() for n in ast.walk(t) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    sizes = sorted((f.end_lineno or f.lineno) - f.lineno + 1 for f in functions)
    documented = [d for d in map(ast.get_docstring, functions) if d]
    verbs = sum(map(begins_with_verb, documented))
    print(
        f"docstrings of functions that begin with a verb: {verbs} of {len(documented)} ({verbs / len(documented):.0%})"
    )
    print(
        f"functions: {len(sizes)}; median {statistics.median(sizes):.0f} lines, 90th percentile "
        f"{sizes[int(0.9 * len(sizes))]}, longest {sizes[-1]}"
    )
    vague = Counter(name for tree in trees.values() for _, _, name in vague_names(tree))
    print(
        f"functions with a vague local name in use over more than {SCOPE} lines: {vague.total()} "
        f"({', '.join(f'{name} {count}' for name, count in vague.most_common())})"
    )
    texts = {name: path.read_text() for name, path in paths.items()}
    lines = {name: text.count("\n") for name, text in texts.items()}
    comments = sum(line.lstrip().startswith("#") for text in texts.values() for line in text.splitlines())
    ladder = sum(
        len(re.findall(r"isinstance\([^)]*(Prompt|Prefix|Weights|Probe|Ensemble|Pool|Counts|LowRank)", t))
        for t in texts.values()
    )
    print(f"files over 300 lines: {sum(n > 300 for n in lines.values())}")
    print(f"comment lines: {comments}; isinstance on value classes: about {ladder}")
    print(f"lines of foreword/: {sum(lines.values())}; files: {len(lines)}")
    print(f"words of README.md: {len((ROOT / 'README.md').read_text().split())}")


if __name__ == "__main__":
    main()
