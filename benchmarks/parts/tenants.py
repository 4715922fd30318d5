"""Training one prompt and training three hundred, one for each of as many small tasks, over the same frozen model."""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import shapes
from benchmarks.parts.measure import high_water, reset_high_water
from foreword.errors import ForewordError
from foreword.methods.registry import make_job
from foreword.models.base import FrozenLM
from foreword.tasks.task import Task
from foreword.training.trainer import Trained, train_many

ROWS, BATCH = 16, 8


def tenants(count: int, file: Path | None) -> list[Task]:
    """Tasks of 16 rows each, no two with the same."""
    rows = shapes.sentences(file, count * ROWS + 2)
    spare = rows[-2:]
    return [shapes.task_of([*rows[i * ROWS : (i + 1) * ROWS], *spare], f"tenant-{i}") for i in range(count)]


def seconds_of(lm: FrozenLM, tasks: list[Task], method: str, steps: int) -> float:
    """Wall time of `train_many`, encoding and artefacts included. Raises: the error of a task that failed."""
    options = {"length": 20, "steps": steps, "batch_size": BATCH, "keep": "last", "learning_rate": 0.01}
    jobs = [make_job(lm, task, method, options=options) for task in tasks]
    began = time.perf_counter()
    outcomes = train_many(lm, jobs)
    took = time.perf_counter() - began
    for outcome in outcomes:
        if isinstance(outcome, ForewordError):
            raise outcome
        assert isinstance(outcome, Trained), "a job ends in an artefact or an error"
    return took


def measure(
    family: str, method: str, *, full: str, dtype: str, device: str, rows: str, count: int, repeats: int
) -> dict[str, Any]:
    """Rows a second of one learner alone (`repeats` runs) and of `count` learners in one stack."""
    file = Path(rows) if rows else None
    lm = shapes.wrapped(shapes.build(getattr(shapes, full)[family], getattr(torch, dtype), device))
    tasks = tenants(count, file)
    steps = 1
    seconds_of(lm, tasks[:1], method, 1)  # warm-up
    alone = [seconds_of(lm, tasks[i : i + 1], method, steps) for i in range(min(repeats, count))]
    reset_high_water(device)
    together = seconds_of(lm, tasks, method, steps)
    one = steps * BATCH / sorted(alone)[len(alone) // 2]
    many = steps * BATCH * count / together
    return {
        "tenants": count,
        "steps": steps,
        "alone": {"seconds": alone, "rows_per_second": one},
        "together": {"seconds": together, "rows_per_second": many},
        "ratio": many / one,
        "high_water": high_water(device),
    }
