"""Killed with SIGKILL at random moments and resumed, a job ends in the same bytes.

Run: python -m pytest tests/test_killed.py
"""

import json
import random
from pathlib import Path

import pytest

from tests.killed import contents, finish, kill
from tests.planted import planted_task
from tests.seeds import new_seed

KILLS = 20
FAST = ["-o", "length=2", "-o", "batch_size=4"]


def write_task(path: Path, seed: int) -> None:
    task = planted_task(seed, train=40, validation=8, test=24)
    rows = [{**r.fields, "label": task.labels[r.label]} for s in ("train", "validation", "test") for r in task.rows(s)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for seed in range(5):
        write_task(folder / f"tenant-{seed}.jsonl", seed)
    return folder


def jobs(tasks: Path) -> dict[str, list[object]]:
    """Commands short of their --out; each takes several checkpoints and stacks."""
    tiny, one = ["--model", "foreword-tiny"], ["--data", tasks / "tenant-0.jsonl"]
    return {
        "run": [
            *("train", "prefix-tuning", *tiny, *one, *FAST, "-o", "reparametrise=true", "-o", "hidden=8"),
            *("-o", "steps=180", "-o", "eval_every=20", "-o", "warmup=10", "-o", "schedule=cosine"),
        ],
        "comparison": [
            *("compare", *tiny, *one, "--methods", "manual,prompt-tuning,fine-tuning", "--seeds", "2"),
            *("-o", "steps=40", "-o", "eval_every=20", "-o", "batch_size=4"),
            *("-o", "prompt-tuning.length=2,3", "-o", "prompt-tuning.steps=60"),
        ],
        "tenants": [
            *("train", "prompt-tuning", *tiny, "--tasks", tasks, "--stack", "2", *FAST),
            *("-o", "steps=60", "-o", "eval_every=20"),
        ],
        "start": [
            *("train", "metaprompting", *tiny, "--tasks", tasks, "-o", "length=2", "-o", "batch_size=2"),
            *("-o", "queries=2", "-o", "inner_steps=1", "-o", "learn_rates=true", "-o", "steps=60"),
            *("-o", "eval_every=20", "-o", "validation_episodes=2", "-o", "init=uniform"),
        ],
    }


@pytest.mark.parametrize(
    "kind", ["run", "start", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("comparison", "tenants"))]
)
def test_killed_at_random_moments_a_job_ends_in_the_same_bytes(kind, tasks, tmp_path):
    seed = new_seed(2**32)
    draw, command = random.Random(seed), jobs(tasks)[kind]
    log = tmp_path / "log"
    whole = tmp_path / "whole" / "out"
    finish([*command, "--out", whole], log)  # loads what is loaded once
    again = tmp_path / "again" / "out"
    seconds = finish([*command, "--out", again], log)
    expected = contents(whole.parent)
    assert contents(again.parent) == expected, "without a kill, twice the same bytes"
    kills, rounds = 0, 0
    while kills < KILLS:
        out = tmp_path / f"parts-{rounds}" / "out"
        rounds += 1
        for _ in range(draw.randrange(1, 8)):  # go on, and be killed again, several times over
            if not kill([*command, "--out", out, "--resume"], log, draw.uniform(0.02, seconds)):
                break
            kills += 1
        finish([*command, "--out", out, "--resume"], log)
        assert contents(out.parent) == expected, f"seed {seed}, after {kills} kills in {rounds} rounds"


def test_equal_bytes_are_no_accident_since_another_seed_gives_others(tasks, tmp_path):
    command, log = jobs(tasks)["tenants"], tmp_path / "log"
    finish([*command, "--out", tmp_path / "one" / "out"], log)
    finish([*command, "--seed", "1", "--out", tmp_path / "two" / "out"], log)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    prompts = [name for name in one if name.endswith("prompt.safetensors")]
    assert len(prompts) == 5
    assert all(one[name] != two[name] for name in prompts)
