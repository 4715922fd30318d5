"""Fill the parts of README.md and docs/help.md that are made from something else; no number is typed by hand.

python docs/fill.py                                 the tree of files and the help pages
python docs/fill.py --demo DIR --real DIR [DIR...]  also the tables, from the folders that comparisons left
"""

import argparse
import ast
import re
from pathlib import Path

from foreword.cli.help import markdown as help_pages

ROOT = Path(__file__).parents[1]
README, HELP = ROOT / "README.md", ROOT / "docs" / "help.md"
# Folders in the order in which a text row passes through them.
LAYERS = ["core", "models", "tasks", "methods", "interop", "evaluation", "serving", "cli", "data"]
OTHERS = {
    "recipes/": "one flat loop to read, the tables of this page, the training of the embedded model",
    "benchmarks/": "speed against peers, one JSON line each",
    "tests/": "mirrors foreword/; layers, contract of all methods, documents",
    "docs/": "help.md, and fill.py that fills this page",
    "LOG.md": "dated experiments, negative results kept",
    "CHANGELOG.md": "what changed for users",
}
OTHER_DATA = {"foreword-mini": "the embedded model: its card, sources, weights and tokenizer"}


def comment(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = text.split("\n\n")[0].split("\n")[0]
    return re.split(r"(?<!et al)[.;] ", first)[0].strip().rstrip(".:;")


def tree() -> str:
    """Every file with one comment."""
    package = ROOT / "foreword"
    lines = [("foreword/", "")]
    lines += [(f"  {p.name}", comment(p)) for p in sorted(package.glob("*.py"))]
    for layer in LAYERS:
        files = [p for p in sorted((package / layer).rglob("*.py")) if p.name != "__init__.py" or comment(p)]
        data = [p for p in sorted((package / layer).iterdir()) if p.name in OTHER_DATA]
        if files or data:
            lines.append((f"  {layer}/", ""))
        lines += [(f"    {p.relative_to(package / layer)}", comment(p)) for p in files]
        lines += [(f"    {p.name}/", OTHER_DATA[p.name]) for p in data]
    lines += [(name, said) for name, said in OTHERS.items() if (ROOT / name).exists()]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(["```", *[f"{name:<{width}}{said}".rstrip() for name, said in lines], "```"])


def filled(text: str, part: str, content: str) -> str:
    """The text with what stands between the markers of a part replaced."""
    start, end = f"<!-- {part}: filled by docs/fill.py -->", f"<!-- end of {part} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"README.md has no markers {start} and {end}; put them back.")
    return f"{before}{start}\n{content}\n{end}{after}"


def table(folder: str) -> str:
    """The table of a comparison's folder."""
    from foreword.evaluation.records import Store
    from foreword.evaluation.report import markdown
    from foreword.evaluation.summary import summarise

    store = Store.open(folder)
    records = store.records()
    where = records[0].environment
    machine = (
        f"Measured on {where['machine']} {where['device']}, {where['threads']} thread(s), {where['dtype']}, "
        f"torch {where['torch']}, transformers {where['transformers']}; seconds are of training."
    )
    return f"{markdown(summarise(records, store.predictions)).strip()}\n\n{machine}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--demo", metavar="DIR", help="folder of `foreword demo`")
    given = parser.parse_args()
    text = filled(README.read_text(encoding="utf-8"), "tree", tree())
    if given.demo:
        text = filled(text, "demo", table(given.demo))
    README.write_text(text, encoding="utf-8")
    HELP.write_text(help_pages(), encoding="utf-8")


if __name__ == "__main__":
    main()
