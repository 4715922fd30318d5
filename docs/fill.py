"""Fill the parts of the documents that are made from something else; no number is typed by hand.

python docs/fill.py               docs/architecture.md, docs/help.md and docs/http.md
python docs/fill.py --demo DIR    also the tables of the demo, from the folder that `foreword demo` left
"""

import argparse
import ast
import re
from pathlib import Path
from typing import Any

from foreword.cli.help import markdown as help_pages

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results-overview.md"
ARCHITECTURE, HELP, HTTP = (ROOT / "docs" / f"{name}.md" for name in ("architecture", "help", "http"))
LAYERS = ROOT / "docs" / "layers.svg"
# The wings in the order in which they may import each other, with what each is for.
WINGS = {
    "core": "templates, prompts, formats, artefacts; how a prompt enters a model",
    "models": "a frozen model and a row's way from text to tokens",
    "tasks": "rows of data, their splits, labels and metrics",
    "inference": "what an artefact says about rows; nothing is trained here",
    "interop": "exchange with PEFT, vLLM and plain text",
    "training": "what learns: the contract of methods, the loop, optimizers, checkpoints",
    "methods": "one folder for each family of methods",
    "evaluation": "comparisons, intervals and tables",
    "serving": "thousands of prompts over one model",
    "cli": "the command line",
}
OTHERS = {
    "recipes/": "one flat loop to read, and the commands that make the result pages",
    "benchmarks/": "speed beside peers, one JSON line each",
    "tests/": "a mirror of foreword/, the contract table over all methods, the layers, the documents",
    "docs/": "these pages, and fill.py and measure.py",
    "notebooks/": "three first steps",
    "LOG.md": "dated experiments, negative results among them",
    "CHANGELOG.md": "what changed for users",
}
DATA = {"data/foreword-mini": "the embedded model: its card, sources, weights and tokenizer"}


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, whole."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"(?<!et al)(?<!e\.g)[.!?](?= [A-Z`]|$)", paragraph)
    return paragraph[: end.end()] if end else paragraph


def architecture() -> str:
    """Return the page of the layers and of every file."""
    package = ROOT / "foreword"
    lines = [
        "# How it is built",
        "",
        "A row of data passes through the folders of `foreword/` in this order, and imports go the same way.",
        "`tests/test_layers.py` enforces it.",
        "",
        "![The layers, from core to cli](layers.svg)",
        "",
        "Where to begin: [the training loop](../foreword/training/loop.py),",
        "[prefix tuning](../foreword/methods/soft/prefix_tuning.py),",
        "[how a prompt enters a model](../foreword/core/inject.py), and",
        "[one flat loop](../recipes/flat_loop.py), which trains a soft prompt in one file.",
        "",
        "| folder | what it holds |",
        "| --- | --- |",
        *[f"| [{name}](#{name}) | {what} |" for name, what in WINGS.items()],
        *[f"| {name} | {what} |" for name, what in {**DATA, **OTHERS}.items()],
        "",
    ]
    for name in ["foreword", *WINGS]:
        folder = package if name == "foreword" else package / name
        files = sorted(folder.glob("*.py")) if name == "foreword" else sorted(folder.rglob("*.py"))
        lines += [f"## {name}", "", "| file | |", "| --- | --- |"]
        for path in files:
            sentence = first_sentence(path)
            if path.name != "__init__.py" or sentence:
                link = f"../{path.relative_to(ROOT).as_posix()}"
                lines.append(
                    f"| [{path.relative_to(folder).as_posix()}]({link}) | {sentence.replace('|', chr(92) + '|')} |"
                )
        lines.append("")
    return "\n".join(lines)


def layers_picture() -> str:
    """Return a picture of the wings, the lowest at the bottom."""
    height, width = 46, 640
    boxes = []
    for number, (name, what) in enumerate(reversed(WINGS.items())):
        y = 10 + number * (height + 8)
        boxes.append(
            f'<rect x="10" y="{y}" width="{width - 20}" height="{height}" rx="6" fill="#eef2f7" stroke="#8aa0b8"/>'
            f'<text x="24" y="{y + 28}" font-weight="bold">{name}</text><text x="130" y="{y + 28}">{what}</text>'
        )
    total = 10 + len(WINGS) * (height + 8)
    style = 'font-family="system-ui, sans-serif" font-size="12.5" fill="#1d2733"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" role="img" {style}>'
    title = "<title>Each layer imports only those below it</title>"
    return "\n".join([head, title, f'<rect width="{width}" height="{total}" fill="#ffffff"/>', *boxes, "</svg>", ""])


def http_page(schema: dict[str, Any]) -> str:
    """Return the page of the server's routes, from its OpenAPI document."""
    lines = ["# HTTP", "", "Made from the server's own description, which it answers at `/openapi.json`.", ""]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            lines += [
                f"## {method.upper()} {path}",
                "",
                *(route.get("description") or route["summary"]).splitlines(),
                "",
            ]
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = body.get("$ref", "").rpartition("/")[2]
            properties = schema["components"]["schemas"].get(name, {}).get("properties", {})
            if properties:
                required = schema["components"]["schemas"][name].get("required", [])
                lines += ["| field | type | |", "| --- | --- | --- |"]
                for field, about in properties.items():
                    needed = "required. " if field in required else ""
                    described = " ".join(about.get("description", "").split()).replace("|", "\\|")
                    lines.append(f"| `{field}` | {_type(about)} | {needed}{described} |")
                lines.append("")
            statuses = ", ".join(f"{status} ({answer['description']})" for status, answer in route["responses"].items())
            lines += [f"Answers: {statuses}.", ""]
    return "\n".join(lines)


def _type(about: dict[str, Any]) -> str:
    """Return the type of a field of a request, in words."""
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_type(one) for one in about["anyOf"] if one.get("type") != "null"))
    if about.get("type") == "array":
        return f"list of {_type(about.get('items', {}))}"
    return about.get("type") or about.get("$ref", "value").rpartition("/")[2]


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of a server without prompts."""
    import tempfile

    from foreword.models.load import load
    from foreword.serving.app import make_app
    from foreword.serving.store import PromptStore
    from tests.serving.running import server

    lm = load("foreword-tiny-causal")
    with tempfile.TemporaryDirectory() as folder:
        PromptStore.open(folder, create=True)
        with server(Path(folder), lm) as own:
            return make_app(own).openapi()


def filled(text: str, part: str, content: str) -> str:
    """Return the text with what stands between the markers of a part replaced.

    Raises: SystemExit if a marker is missing.
    """
    start, end = f"<!-- {part}: filled by docs/fill.py -->", f"<!-- end of {part} -->"
    before, marker, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not marker or not closed:
        raise SystemExit(f"The document has no markers {start} and {end}; put them back.")
    return f"{before}{start}\n{content}\n{end}{after}"


def table(folder: str) -> str:
    """Return the table of a comparison's folder."""
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


def shortened(whole: str) -> str:
    """Return the columns of a comparison's table that the front page shows."""
    lines = whole.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    columns = {rows[0].index(name): shown for name, shown in SHOWN.items()}
    head = ["| " + " | ".join(columns.values()) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    body = ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows[2:]]
    return "\n".join([lines[0].split(". Accuracy")[0] + "; = marks a difference that is not shown.", "", *head, *body])


SHOWN = {
    "method": "method", "accuracy": "accuracy", "vs manual": "vs manual", "vs fine-tuning": "vs fine-tuning",
    "numbers": "parameters trained", "bytes": "bytes",
}  # fmt: skip


def main() -> None:
    """Fill the documents."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--demo", metavar="DIR", help="folder of `foreword demo`")
    arguments = parser.parse_args()
    if arguments.demo:
        whole = table(arguments.demo)
        README.write_text(filled(README.read_text(encoding="utf-8"), "demo", shortened(whole)), encoding="utf-8")
        RESULTS.write_text(filled(RESULTS.read_text(encoding="utf-8"), "demo-full", whole), encoding="utf-8")
    ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    LAYERS.write_text(layers_picture(), encoding="utf-8")
    HELP.write_text(help_pages(), encoding="utf-8")
    HTTP.write_text(http_page(openapi()), encoding="utf-8")


if __name__ == "__main__":
    main()
