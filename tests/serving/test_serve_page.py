"""The README's commands for serving, as they are printed. python -m pytest tests/serving/test_serve_page.py

But with the tiny model, two steps, and a port that is free.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword.cli.main import run

ROOT = Path(__file__).parents[2]
PRINTED = "http://127.0.0.1:8000"
SECTION = (ROOT / "docs" / "serve.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
LINES = [line for language, block in BLOCKS if not language for line in block.splitlines() if line]
SMALLER = {"foreword-mini-causal": "foreword-tiny-causal", "steps=60": "steps=2"}


def lines(start: str) -> list[str]:
    found = [line for line in LINES if line.startswith(start)]
    assert found, start
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the training commands have run."""
    monkeypatch.chdir(tmp_path)
    for line in lines("foreword train"):
        for printed, small in SMALLER.items():
            line = line.replace(printed, small)
        assert run(shlex.split(line)[1:]) == 0, line
    return tmp_path


@contextlib.contextmanager
def serving() -> Iterator[str]:
    [line] = lines("foreword serve")
    command = [sys.executable, "-m", *shlex.split(line), "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        said = []
        try:
            for told in process.stderr:
                said.append(told)
                if found := re.match(r"(http://\S+) serves 2 prompts", told):
                    break
            else:
                raise AssertionError("".join(said))
            yield found[1]
        finally:
            process.terminate()
            process.stderr.read()
    assert process.returncode == 0


def curl(line: str, address: str) -> str:
    asked = f"{line.replace(PRINTED, address)} -sS --fail-with-body -m 60"
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl to run the page's lines with")
def test_serving_as_printed(folder, capsys):
    with serving() as address:
        said: dict[str, str] = {}
        [code] = [block for language, block in BLOCKS if language == "python"]
        for line in LINES:
            if line.startswith("tar "):
                capsys.readouterr()
                exec(code.replace(PRINTED, address), {})
                assert capsys.readouterr().out
                subprocess.run(shlex.split(line), check=True)
            elif line.startswith("curl "):
                said[line.replace(PRINTED, "")] = curl(line, address)
            elif not line.startswith(("foreword train", "foreword serve")):
                assert run(shlex.split(line)[1:]) == 0, line
        labelled, whole, streamed, chat, models, added, back, _, beta, _, card, _ = said.values()
        for one in json.loads(labelled)["data"]:
            assert {*one["probabilities"]} == {"negative", "positive"}
        assert json.loads(whole)["choices"][0]["finish_reason"] and json.loads(chat)["choices"]
        assert streamed.endswith("data: [DONE]\n\n")
        assert [one["id"] for one in json.loads(models)["data"]] == ["reviews", "words", "foreword-tiny-causal"]
        assert [json.loads(one)["id"] for one in (added, back)] == ["reviews@2", "reviews@1"]
        assert json.loads(beta)["model"] == "reviews@2"
        told = json.loads(card)
        assert (told["current"], told["aliases"], told["share"]["version"]) == (1, {"beta": 2}, 2)
        # The keys that were made last hold at once.
        locked = subprocess.run(["curl", "-s", f"{address}/v1/models"], capture_output=True, text=True, check=True)
        assert json.loads(locked.stdout)["error"]["code"] == "invalid_api_key"


def test_the_guide_names_routes_options_and_metrics_that_there_are(tmp_path):
    """Every route, option and metric of docs/serving.md is one of the server's."""
    from foreword.cli.keys import keys
    from foreword.cli.serve import serve
    from foreword.models.load import load
    from foreword.serving.app import make_app
    from tests.serving.running import filled, server

    guide = (ROOT / "docs" / "serving.md").read_text()
    commands = [serve, *keys.commands.values()]
    options = {one for command in commands for parameter in command.params for one in parameter.opts}
    assert {*re.findall(r"`(--[a-z-]+)", guide + SECTION)} <= options | {"--tasks", "--json"}
    lm = load("foreword-tiny-causal")
    with server(filled(tmp_path / "store", lm), lm) as own:
        app = make_app(own)
        paths = {re.sub(r"{\w+(:path)?}", "X", path) for path in app.openapi()["paths"]} | {"/openapi.json", "/"}
        named = {
            re.sub(r"\b[A-Z]+\b", "X", path)
            for path in re.findall(r"^\| `[A-Z]+`?.*? ?(/v1[^`]*)`", guide, re.MULTILINE)
        }
        assert named and named <= paths, named - paths
        metrics = own.metrics.page().decode()
        for name in re.findall(r"`(foreword_\w+)`", guide):
            assert name in metrics, name
