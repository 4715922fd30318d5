"""A run of the tests can be repeated, draw by draw, whichever of its tests are chosen and on however many workers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = """
import pytest
from tests.seeds import new_seed

AT_IMPORT = new_seed()

@pytest.fixture(scope="module", params=["x", "y"])
def wide(request):
    return new_seed()

def two():
    return new_seed(), new_seed()

@pytest.mark.parametrize("case", [1, 2, 3])
def test_one(case, wide, seed):
    print("DREW", f"one-{case}", AT_IMPORT, wide, seed, *two())

def test_other(wide, seed):
    print("DREW other", AT_IMPORT, wide, seed, *two())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    (root / "tests").mkdir()
    for name in ("conftest.py", "seeds.py"):
        shutil.copy(HERE / name, root / "tests" / name)
    (root / "tests" / "test_drawn.py").write_text(TESTS)
    return root


def draws(folder, seed, *arguments):
    """The lines that the tests printed, in a fresh process."""
    environment = {**os.environ, "FOREWORD_TEST_SEED": str(seed), "PYTHONPATH": str(folder)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rP", *arguments, "tests/test_drawn.py"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return sorted(line for line in result.stdout.splitlines() if line.startswith("DREW")), result.stdout


def test_the_same_seed_draws_the_same_in_any_selection(folder):
    lines, output = draws(folder, 7)
    assert "FOREWORD_TEST_SEED=7" in output
    assert len(set(lines)) == 8
    assert draws(folder, 7, "-n", "2")[0] == lines
    alone = draws(folder, 7, "-k", "test_other")[0]
    assert alone == [line for line in lines if " other " in line]


def test_another_seed_draws_others_and_no_two_places_draw_alike(folder):
    first, second = draws(folder, 7)[0], draws(folder, 8)[0]
    assert not {line.split()[-1] for line in first} & {line.split()[-1] for line in second}
    numbers = [number for line in first for number in line.split()[4:]]
    assert len(set(numbers)) == len(numbers)
