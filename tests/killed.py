"""Commands in processes of their own that are killed with SIGKILL. The libraries are loaded once, in a fork server."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

LOADED = [
    "foreword.cli.main", "foreword.evaluation.tasks", "foreword.training.trainer", "foreword.models.hf.lm",
    "foreword.models.hf.tiny_checkpoints", "foreword.models.load", "transformers.models.bert.modeling_bert",
    "tests.killed",
]  # fmt: skip
CLOCK = ("timings.jsonl",)


def work(arguments: Sequence[str], log: str) -> None:
    """`foreword ARGUMENTS` with its output in a file."""
    from foreword.cli.main import run

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os._exit(run(list(arguments)))


def start(arguments: Sequence[object], log: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    process = context.Process(target=work, args=([str(a) for a in arguments], str(log)))
    process.start()
    return process


def finish(arguments: Sequence[object], log: Path) -> float:
    """Run to the end; gives the seconds it took."""
    began = time.monotonic()
    process = start(arguments, log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return time.monotonic() - began


def kill(arguments: Sequence[object], log: Path, after: float) -> bool:
    """Run for so many seconds and kill; says whether there was something to kill."""
    process = start(arguments, log)
    process.join(after)
    process.kill()
    process.join(60)
    assert process.exitcode in (0, -9), log.read_text()
    return process.exitcode == -9


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too, but for those that hold what the clock said."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in CLOCK
    }
