"""How every recipe runs and ends: its threads, its exit status, and one sentence where it failed or was stopped."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from foreword.errors import ForewordError
from foreword.evaluation.compare import FailedRun


def ended(out: Path, work: Callable[[], Sequence[FailedRun]], threads: int | None = None) -> int:
    """The exit status of `work`, which gives the runs that failed: 0; 2 with a failure or an error; 130 if stopped.

    `threads` are torch's, where they are given.
    """
    if threads:
        torch.set_num_threads(threads)
    try:
        failures = work()
    except ForewordError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what is done is in {out}, and the same command goes on", file=sys.stderr)
        return 130
    for failure in failures:
        print(f"failed: {failure.task}, {failure.method}, seed {failure.seed}: {failure.reason}", file=sys.stderr)
    return 2 if failures else 0
