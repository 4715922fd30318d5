"""Two processes with one --out: they share the work, or the second says who is at it. Killed ones hold nobody up.

Run: python -m pytest tests/test_two_processes.py
"""

import json
import random
import re
import time
from pathlib import Path

from foreword.core.artefact import RECORD, Artefact
from foreword.evaluation.records import Store
from tests.killed import start
from tests.seeds import new_seed
from tests.test_killed import write_task

FAST = ["-o", "length=2", "-o", "batch_size=4", "-o", "steps=40", "-o", "eval_every=20"]


def tasks_of(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(3):
        write_task(folder / f"tenant-{seed}.jsonl", seed)
    return folder


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.name == "checkpoints"]


def test_two_add_to_one_folder_and_one_that_is_killed_holds_up_no_other(tmp_path):
    tasks, out = tasks_of(tmp_path / "tasks"), tmp_path / "out"
    command = ["train", "prompt-tuning", "--model", "foreword-tiny", "--tasks", tasks, "--stack", "1", *FAST]
    command += ["-o", "steps=200", "--out", out]
    draw = random.Random(new_seed(2**32))
    processes = [start(command, tmp_path / f"log-{number}") for number in range(3)]
    time.sleep(draw.uniform(0.2, 2.0))
    processes[0].kill()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes[1:]] == [0, 0], (tmp_path / "log-1").read_text()
    names = {record.artefact for record in Store.open(out).records() if record.artefact}
    assert names == {f"artefacts/tenant-{seed}" for seed in range(3)}
    for name in names:
        assert Artefact.load(out / name).form == "soft"
    last = start(command, tmp_path / "log-last")  # nothing is left to do but to clear up
    last.join(200)
    assert last.exitcode == 0
    assert not hidden(out)


def test_the_second_of_two_that_make_one_artefact_says_who_is_at_it(tmp_path):
    tasks, out = tasks_of(tmp_path / "tasks"), tmp_path / "out"
    command = ["train", "prompt-tuning", "--model", "foreword-tiny", "--data", tasks / "tenant-0.jsonl", *FAST]
    command += ["-o", "steps=400", "--out", out]
    first = start(command, tmp_path / "log-0")
    until = time.monotonic() + 100
    while not (tmp_path / ".out.held").exists() and time.monotonic() < until:
        time.sleep(0.01)
    second = start(command, tmp_path / "log-1")
    for process in (first, second):
        process.join(200)
    assert (first.exitcode, second.exitcode) == (0, 2)
    told = (tmp_path / "log-1").read_text()
    assert re.search(rf"--out .*out is being written by process {first.pid} on ", " ".join(told.split())), told
    assert not hidden(tmp_path)
    # The artefact tells what it takes to find its rows again, and not where on this machine they are.
    record = json.loads((out / RECORD).read_bytes())
    assert record["recipe"]["data"]["source"] == "artefact:../tasks/tenant-0.jsonl"
    assert str(tmp_path) not in (out / RECORD).read_text() + (out / "README.md").read_text()
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    Artefact.load(out).save(moved)
    assert Artefact.load(moved).recipe["data"]["source"] == str(tasks / "tenant-0.jsonl")
    again = start(["retrain", moved, "--model", "foreword-tiny", "--out", tmp_path / "new"], tmp_path / "log-2")
    again.join(200)
    assert again.exitcode == 0, (tmp_path / "log-2").read_text()
