"""Decoding through torch.compile, in a process of its own: what checks shapes in tests cannot be compiled."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def lines_of(file: str) -> list[str]:
    """What a test file prints when it is run as a program; skips where nothing can be compiled."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile on a CPU needs a C++ compiler, and there is none")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    told = subprocess.run([sys.executable, file], capture_output=True, text=True, env=env)
    assert told.returncode == 0, told.stderr
    return told.stdout.splitlines()


def graphs_of(write: Callable[[Any], Any]) -> tuple[Any, int]:
    """What is written with a config that compiles, and how many graphs this process has made by then."""
    from torch._dynamo.utils import counters
    from transformers import CompileConfig

    how = CompileConfig(fullgraph=False, mode="default")
    how._compile_all_devices = True  # the library compiles on accelerators alone, unless told
    return write(how), counters["stats"]["unique_graphs"]
