"""No template, row, file or argument ends in a traceback. Run: python -m pytest tests/test_hostile.py"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.seeds import new_seed

SCRIPT = Path(__file__).parent / "hostile.py"


def drawn(count: int) -> None:
    seed = str(new_seed(2**32))
    print(f"seed {seed}")
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, str(SCRIPT), seed, str(count)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert f"{count} draws, 0 faults" in result.stdout


def test_a_small_draw_ends_in_values_or_sentences():
    drawn(400)


@pytest.mark.slow
def test_ten_thousand_draws_end_in_values_or_sentences():
    drawn(10_000)


def test_the_draw_finds_what_it_looks_for(monkeypatch):
    """A traceback and an error without a sentence are faults; the same draws without them are none."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import hostile
    finally:
        sys.path.remove(str(SCRIPT.parent))

    def fails(error):
        def kind(rng, folder):
            raise error

        return hostile.fault_of(kind, random.Random(0), Path())

    assert "TypeError" in fails(TypeError("x"))
    assert "no sentence" in fails(hostile.ForewordError("two\nlines"))
    assert fails(hostile.ForewordError("Give a text.")) is None
