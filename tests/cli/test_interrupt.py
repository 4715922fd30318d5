"""Ctrl-C keeps what there is and says how to go on. Run: python -m pytest tests/cli/test_interrupt.py"""

import shlex
import signal
import subprocess
import sys
import time

import pytest

STEPS = 75


def start(arguments, until):
    """Run the command in a process of its own, press Ctrl-C as soon as `until()` is true, return code and stderr."""
    command = [sys.executable, "-m", "foreword", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not until() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def said_command(err):
    """The arguments of the command that stderr says to go on with."""
    line = next(line for line in err.splitlines() if line.startswith("go on with: "))
    words = shlex.split(line.removeprefix("go on with: "))
    assert words[0] == "foreword"
    return words[1:]


def test_train_goes_on_to_the_same_artefact(foreword, data, tmp_path):
    out, whole = tmp_path / "a folder" / "out", tmp_path / "whole"
    arguments = ["train", "prompt-tuning", "--model", "foreword-tiny", "--data", data]
    options = ["-o", f"steps={STEPS}", "-o", "length=2", "-o", "batch_size=4", "-o", "eval_every=100"]
    checkpoint = out.with_name("out.checkpoint")
    code, printed, err = start([*arguments, "--out", out, *options], checkpoint.exists)
    assert (code, printed) == (130, ""), err
    assert "Traceback" not in err
    assert not out.exists()
    stopped = foreword("show", out.with_name("out.stopped"))
    assert stopped.code == 0, stopped.err
    assert foreword(*said_command(err)).code == 0
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert foreword(*arguments, "--out", whole, *options).code == 0
    assert (out / "prompt.safetensors").read_bytes() == (whole / "prompt.safetensors").read_bytes()


def test_resume_of_another_run_is_refused(foreword, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["train", "prompt-tuning", "--model", "foreword-tiny", "--data", data, "--out", out, "-o", "length=2"]
    code, _, err = start([*arguments, "-o", f"steps={STEPS}"], out.with_name("out.checkpoint").exists)
    assert code == 130, err
    found = foreword(*arguments, "-o", f"steps={STEPS + 1}", "--resume")
    assert found.code == 2
    assert "another job" in found.error
    assert out.with_name("out.checkpoint").exists()


def test_compare_goes_on_where_it_was(foreword, data, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ["compare", "--model", "foreword-tiny", "--data", data, "--methods", "manual,prompt-tuning"]
    options = ["--seeds", "2", "-o", f"steps={STEPS}", "-o", "batch_size=4", "-o", "eval_every=100"]
    code, _, err = start([*arguments, "--out", out, *options], (out / "checkpoints").exists)
    assert code == 130, err
    assert len((out / "results.jsonl").read_text().splitlines()) == 2, "the runs of manual"
    assert foreword(*said_command(err)).code == 0
    assert foreword(*arguments, "--out", whole, *options).code == 0
    assert (out / "results.jsonl").read_text() == (whole / "results.jsonl").read_text()


@pytest.mark.parametrize("when", [0.0, 0.3])
def test_ctrl_c_while_loading_is_one_line(data, tmp_path, when):
    began = time.monotonic()
    arguments = ["train", "manual", "--model", "foreword-tiny", "--data", data, "--out", tmp_path / "out"]
    code, _, err = start(arguments, lambda: time.monotonic() - began > 1 + when)
    assert code in (130, 0), err
    assert "Traceback" not in err


def test_a_full_disk_at_the_end_keeps_the_checkpoint_to_go_on_from(foreword, data, tmp_path, monkeypatch):
    from foreword.core.artefact import Artefact
    from foreword.errors import ArtefactError

    out = tmp_path / "out"
    arguments = ["train", "prompt-tuning", "--model", "foreword-tiny", "--data", data, "--out", out]
    options = ["-o", "steps=30", "-o", "length=2", "-o", "batch_size=4", "-o", "eval_every=100"]

    def full(self, folder):
        raise ArtefactError(f"{folder} could not be written (No space left on device).")

    monkeypatch.setattr(Artefact, "save", full)
    assert foreword(*arguments, *options).code == 2
    monkeypatch.undo()
    assert out.with_name("out.checkpoint").exists()
    assert foreword(*arguments, *options, "--resume").code == 0
    assert not out.with_name("out.checkpoint").exists()
