"""python -m pytest tests/methods/instructions/test_resume.py

A search that asks a remote endpoint, killed with SIGKILL while it asks and while it chooses, goes on to the same bytes
without asking again for what was answered.
"""

import json
from pathlib import Path

import pytest

from tests.killed import contents, finish, start
from tests.methods.instructions.endpoint import Stub, serving
from tests.planted import planted_task
from tests.seeds import new_seed

BUDGET = 20_000


@pytest.fixture
def rows(tmp_path) -> Path:
    task = planted_task(new_seed(), train=40, validation=8, test=10)
    path = tmp_path / "rows.jsonl"
    lines = [{**r.fields, "label": task.labels[r.label]} for s in ("train", "validation", "test") for r in task.rows(s)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(rows: Path, url: str, out: Path) -> list[object]:
    return [
        *("train", "ape", "--model", "foreword-tiny", "--data", rows, "--out", out, "--allow-remote"),
        *("-o", "proposer=remote", "-o", f"url={url}", "-o", "remote_model=stub", "-o", "candidates=12"),
        *("-o", "resampled=6", "-o", "budget=300", "-o", "examples=2", "-o", f"token_budget={BUDGET}"),
    ]


def test_killed_while_asking_and_while_choosing(rows, tmp_path):
    log = tmp_path / "log"
    running = []
    kill_at = {3, 9, 16}

    def rule(number: int, body: dict) -> None:
        if number in kill_at:
            running[-1].kill()  # before it is answered

    with serving(Stub()) as whole:
        finish(command(rows, whole.url, tmp_path / "whole" / "out"), log)
    with serving(Stub(rule)) as stub:
        out = tmp_path / "parts" / "out"
        ledger = out.with_name("out.checkpoint")
        rounds = 0
        while not (out / "foreword.json").exists():
            rounds += 1
            assert rounds < 12, log.read_text()
            running.append(start([*command(rows, stub.url, out), "--resume"], log))
            if rounds == 4:  # while it chooses
                while running[-1].is_alive() and not (ledger.exists() and ledger.read_text().count('"answer": [') > 30):
                    running[-1].join(0.01)
                running[-1].kill()
            running[-1].join(120)
        unanswered = {json.dumps(stub.bodies[n], sort_keys=True) for n in kill_at if n < len(stub.bodies)}
        again = [body for body in stub.answered if stub.answered.count(body) > 1]
        assert rounds >= 4
        assert set(again) <= unanswered, "what was answered is not asked for again"
        assert stub.tokens <= BUDGET
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert set(one) == set(other) == {"out/foreword.json", "out/prompt.safetensors", "out/README.md"}
    found = [json.loads(some["out/foreword.json"]) for some in (one, other)]
    for record in found:
        assert record["metrics"]["search"].pop("remote_tokens") <= BUDGET
        record["config"].pop("url"), record["recipe"]["options"].pop("url")
        record.pop("record_sha256")  # of what was just taken out, too
    assert found[0] == found[1]
    assert {c["source"] for c in found[0]["metrics"]["candidates"]} & {"forward", "variation"}
