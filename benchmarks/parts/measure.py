"""Measuring one cell: the gate first, then steps in turn; peak memory of each side in a process of its own."""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parts import shapes, sides
from benchmarks.parts.floor import Rate, floor
from benchmarks.parts.shapes import Shape
from foreword.training.loop import batch_rows, fit

Side = Literal["ours", "theirs"]
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Cell:
    """One comparison: a model's shape, a method, and how the rows of the opponent are padded."""

    family: str
    method: sides.Method
    padding: sides.Padding

    @property
    def name(self) -> str:
        return f"{self.family}/{self.method}/{self.padding}"


CELLS = [
    Cell(family, method, padding)
    for family in ("gpt2", "bert")
    for method in ("prompt", "prefix", "prefix-mlp")
    for padding in ("examples", "buckets")
]
# How many times as fast ours has to be on a CPU at equal dtype.
TARGETS = {
    (family, method, padding): (
        {"prompt": 2.0, "prefix": 3.0, "prefix-mlp": 3.0}
        if padding == "examples"
        else {"prompt": {"gpt2": 1.5, "bert": 1.25}[family], "prefix": 2.0, "prefix-mlp": 2.0}
    )[method]
    for family in ("gpt2", "bert")
    for method in ("prompt", "prefix", "prefix-mlp")
    for padding in ("examples", "buckets")
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What every cell is run with. `gate` steps of few rows on the small shape; `same` and `timed` on the full one."""

    dtype: str = "float32"
    device: str = "cpu"
    rows: str = ""
    full: str = "FULL"
    small: str = "GATE"
    batch_size: int = 32
    gate: int = 200
    gate_rows: int = 8
    same: int = 5
    timed: int = 6


QUICK = {"full": "SMOKE", "small": "SMOKE", "batch_size": 8, "gate": 12, "same": 2, "timed": 3}


def prepared(cell: Cell, setting: Setting, shape: Shape, batch_size: int, steps: int) -> tuple[Any, Any, Any]:
    """The model behind Foreword, our run, and PEFT around a model with the same weights."""
    dtype = getattr(torch, setting.dtype)
    file = Path(setting.rows) if setting.rows else None
    task = shapes.task_of(shapes.sentences(file, 1000))
    model = shapes.build(shape, dtype, setting.device)
    lm = shapes.wrapped(model)
    run = sides.our_run(lm, task, cell.method, steps=steps, batch_size=batch_size)
    theirs = sides.Theirs(model, run, cell.method, cell.padding, lm.batch_tokens)
    return lm, run, theirs


def gap_of(steps: Sequence[tuple[float, float, float, float]]) -> float:
    """The largest difference of the two loss curves, relative to theirs."""
    return max(abs(ours - theirs) / abs(theirs) for _, _, ours, theirs in steps)


def clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def speed(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Gates and times of a cell. A cell whose loss curves disagree is void and is not timed."""
    small = getattr(shapes, setting.small)[cell.family]
    lm, run, theirs = prepared(cell, setting, small, setting.gate_rows, setting.gate)
    curve = sides.in_turn(fit, lm, run, theirs, lambda: clock(setting.device))
    allowed = TOLERANCE[setting.dtype]
    record: dict[str, Any] = {"gate": {"steps": len(curve), "gap": gap_of(curve), "allowed": allowed}}
    record["gate"] |= {"first_loss": curve[0][3], "last_loss": curve[-1][3], "lowest_loss": min(c[3] for c in curve)}
    if not record["gate"]["gap"] <= allowed:
        return record | {"void": "the loss curves of the small shape disagree"}
    shape = getattr(shapes, setting.full)[cell.family]
    lm, run, theirs = prepared(cell, setting, shape, setting.batch_size, 1 + setting.same + setting.timed)
    counted = count(lm, run, theirs)  # warms up as well
    rows = [run.train.encoded[i] for i in batch_rows(run, 0)]
    record["flops"] = counted | {"floor": floor(shape, cell.method, rows, sides.LENGTH)}
    record["tokens"] = {"text": sum(int((e.slot_S < 0).sum()) for e in rows), "rows": len(rows)}
    rate = Rate.measure(getattr(torch, setting.dtype), setting.device).operations_per_second
    steps = sides.in_turn(fit, lm, run, theirs, lambda: clock(setting.device))
    record["same"] = {"steps": len(steps), "gap": gap_of(steps)}
    if not record["same"]["gap"] <= allowed:
        return record | {"void": "the loss curves of the full shape disagree"}
    return record | timed(steps[-setting.timed :], record["flops"], rate, setting.batch_size)


def count(lm: Any, run: Any, theirs: Any) -> dict[str, float]:
    """Operations of one step of each side, by torch's counter; the first step of both, which is not timed."""
    counters = []

    class StopError(Exception):
        pass

    def stop(joint: int) -> None:
        raise StopError

    with FlopCounterMode(display=False) as counter:
        try:
            fit(lm, [run], after_step=stop)
        except StopError:
            counters.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        theirs.step(0)
    counters.append(counter.get_total_flops())
    return {"ours": float(counters[0]), "theirs": float(counters[1])}


def timed(
    steps: Sequence[tuple[float, float, float, float]], flops: dict[str, float], rate: float, rows: int
) -> dict[str, Any]:
    """Medians, and the ratio of every pair of steps with a bootstrap interval of its median."""
    ours, theirs = ([step[i] for step in steps] for i in (0, 1))
    ratios = np.array(theirs) / np.array(ours)
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    found: dict[str, Any] = {"rate": rate, "ratio": {"median": float(np.median(ratios)), "low": low, "high": high}}
    for name, seconds in (("ours", ours), ("theirs", theirs)):
        middle = statistics.median(seconds)
        found[name] = {
            "seconds": middle, "all": seconds, "rows_per_second": rows / middle,
            "share_of_rate": flops[name] / middle / rate,
        }  # fmt: skip
    found["ours"]["floor_share_of_rate"] = flops["floor"] / found["ours"]["seconds"] / rate
    return found


def peak(cell: Cell, setting: Setting, side: Side, steps: int = 2) -> dict[str, float]:
    """High-water mark of this process after some steps of one side: resident bytes, or bytes of the accelerator."""
    shape = getattr(shapes, setting.full)[cell.family]
    lm, run, theirs = prepared(cell, setting, shape, setting.batch_size, steps)
    reset_high_water(setting.device)
    before = high_water(setting.device)
    if side == "ours":
        fit(lm, [run])
    else:
        for number in range(steps):
            theirs.step(number)
    return {"bytes": high_water(setting.device), "before": before}


def reset_high_water(device: str) -> None:
    """Forget the high-water mark so far, where the system lets a process do so."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def high_water(device: str) -> float:
    """Bytes, since the last reset."""
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's mark begins with that of the process that started this one
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def peaks(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Both sides' peaks, each from a fresh process."""
    found = {}
    for side in ("ours", "theirs"):
        command = [sys.executable, "-m", "benchmarks.train", "--peak", side, "--only", cell.name]
        command += ["--setting", json.dumps({**asdict(setting), "threads": torch.get_num_threads()})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {cell.name} ({side}) failed:\n{done.stderr[-2000:]}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine(device: str) -> dict[str, Any]:
    """What a number depends on besides the code; no names of machines."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    import peft
    import transformers

    return {
        "device": model if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }
