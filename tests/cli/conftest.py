"""The command line in this process: what it printed and how it ended."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

WORDS = {"good": ["fine", "lovely", "bright", "warm"], "bad": ["dull", "grim", "stale", "cold"]}
THINGS = ["film", "book", "song", "meal", "game", "trip", "coat", "room"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line after `Error: `; a traceback or a second line is a fault."""
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        assert "Traceback" not in self.err
        return lines[0].removeprefix("Error: ")


@pytest.fixture
def foreword(capsys, monkeypatch):
    """Run `foreword ARGUMENTS` and return its Result."""
    from foreword.cli.main import run

    def call(*arguments: object, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call


def rows(split: int) -> list[dict[str, str]]:
    return [
        {"text": f"a {word} {thing}, number {split}", "label": label}
        for label, words in WORDS.items()
        for word in words
        for thing in THINGS
    ]


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder of 64 rows a split."""
    folder = tmp_path_factory.mktemp("data") / "reviews"
    for number, split in enumerate(("train", "validation", "test")):
        write(folder / f"{split}.jsonl", rows(number))
    return folder


@pytest.fixture(scope="session")
def artefact(data, tmp_path_factory) -> Path:
    """A soft prompt for the tiny masked model, trained for two steps."""
    from foreword.cli.main import run

    out = tmp_path_factory.mktemp("artefacts") / "soft"
    train = ["train", "prompt-tuning", "--model", "foreword-tiny", "--data", str(data), "--out", str(out)]
    assert run([*train, "-o", "length=3", "-o", "steps=2"]) == 0
    return out
