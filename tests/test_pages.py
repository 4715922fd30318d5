"""Every code block of every page is run, or checked against the command line, or says why not.

A command line is parsed by the command that it names: its options exist, and what it needs is there. Run: pytest
tests/test_pages.py
"""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from foreword.cli.main import cli
from foreword.core.template import Template

ROOT = Path(__file__).parents[1]
# Pages that are made from the code, whose blocks are outputs, and the log.
GENERATED = {"help.md", "http.md", "architecture.md"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
]
PAGES = [page for page in PAGES if page.name not in GENERATED]
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^(`{3,})(\S*)\n(.*?)^\2\s*$", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(page, number, match, id=f"{page.name}-{number}")
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.read_text()), start=1)
]
# Python blocks that other tests run with a server or as printed.
ELSEWHERE = {"serve.md": "tests/serving/test_serve_page.py", "README.md": "tests/test_docs.py"}
SHORTER = {"foreword-mini": "foreword-tiny", "steps=100": "steps=2", "steps=60": "steps=2"}


def command_lines(block: str) -> list[str]:
    """The commands of a block, lines that end in a backslash joined, comments left out."""
    joined = block.replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines()]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split(" && ")]


def check_foreword(words: list[str]) -> None:
    """Parse a line by the command that it names."""
    command: click.Command = cli
    context = None
    rest = words
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=rest[0] if rest else "foreword", parent=context)
        command, rest = command.get_command(context, rest[0]), rest[1:]
        assert command is not None, words
    command.make_context(command.name, list(rest), parent=context)


def check_line(line: str) -> None:
    """Raises: AssertionError, click.UsageError for a line that names what is not there."""
    words = shlex.split(line)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    program, rest = Path(words[0]).name, words[1:]
    if program == "foreword":
        check_foreword(rest)
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets, line
    elif program == "python" and rest[0] == "-m":
        assert rest[1] == "pytest" or (ROOT / f"{rest[1].replace('.', '/')}.py").is_file(), line
    elif program == "python":
        script = ROOT / rest[0]
        flags = [word.split("=")[0] for word in rest[1:] if word.startswith("--")]
        text = script.read_text() + "".join(path.read_text() for path in (ROOT / "recipes").glob("*.py"))
        assert all(f'"{flag}"' in text for flag in flags), line
    elif program == "pip":
        extras = re.findall(r"\[([a-z,]+)\]", line)
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert {name for extra in extras for name in extra.split(",")} <= set(known), line
    elif program in ("curl", "tar", "git", "cd", "pre-commit"):
        pass  # the lines for the server are run by tests/serving/test_serve_page.py
    else:
        raise AssertionError(
            f"nobody knows whether {line!r} works; run it in a test, or write <!-- not run: REASON --> above"
        )


@pytest.mark.parametrize(("page", "number", "match"), BLOCKS)
def test_block(page, number, match, tmp_path, monkeypatch, capsys):
    reason, _, language, code = match.groups()
    if reason is not None:
        assert len(reason.split()) >= 3, "a reason is a sentence"
        return
    if language in ("{toctree}", "{eval-rst}"):
        return  # the site is built with warnings as errors
    if language == "python":
        if page.name in ELSEWHERE:
            return
        monkeypatch.chdir(tmp_path)
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        before = (
            "import foreword\n"
            'foreword.Task([{"text": f"{w} {i}", "label": w} for i in range(20) for w in ("good", "bad")])\n'
            'foreword.train(foreword.load("foreword-tiny"), foreword.read_task("builtin:sentiment"), "manual")'
            '.save("artefacts/reviews")\n'
        )
        exec(before + code, {})
        return
    if language in ("json", "template"):
        for line in code.splitlines():
            json.loads(line) if language == "json" else Template.parse(line)
        return
    assert language in ("", "sh", "bash"), f"{page.name}: a block of {language} says why it is not run"
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path)
    for line in command_lines(code):
        check_line(line)


@pytest.mark.parametrize(
    "line",
    ["foreword train prompt-tuning --no-such-option 1", "foreword nothing", "make nothing", "python recipes/nothing.py",
     "pip install 'foreword[nothing]'", "frobnicate", "foreword train", "python recipes/facts.py --nothing"],
)  # fmt: skip
def test_what_is_not_there_is_found(line):
    with pytest.raises((AssertionError, click.UsageError, OSError)):
        check_line(line)
