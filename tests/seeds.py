"""Draw the seeds of tests: new ones in every run, the same again with `FOREWORD_TEST_SEED=N`.

A seed depends on the run's seed, on the test or fixture that draws, on the place in the code and on how often that
place drew before. So it is the same whichever tests run beside it, in whichever order, on however many workers.
"""

import hashlib
import os
import random
import sys
from collections import Counter

VARIABLE = "FOREWORD_TEST_SEED"
_drawers = ["import"]  # the test or fixture that runs, innermost last
_draws: Counter[tuple[str, str]] = Counter()


def run_seed() -> int:
    """Return the seed of this run; the first caller of a run draws it, and its workers inherit it.

    Raises: SystemExit if the variable holds no whole number.
    """
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(random.SystemRandom().randrange(2**32))
    text = os.environ[VARIABLE]
    if not text.isdecimal():
        raise SystemExit(f"{VARIABLE} is {text!r}; give a whole number, as a run of the tests printed it.")
    return int(text)


def new_seed(bound: int = 10**6) -> int:
    """Return a seed below `bound` for the test or fixture that runs; another one at each call."""
    frame = sys._getframe(1)
    place = f"{frame.f_globals.get('__name__', '')}:{frame.f_code.co_name}"
    drawer = _drawers[-1]
    _draws[drawer, place] += 1
    text = f"{run_seed()} {drawer} {place} {_draws[drawer, place]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % bound


def enter(drawer: str) -> None:
    """Begin a test or fixture, named as it is in every run."""
    _drawers.append(drawer)
    for key in [key for key in _draws if key[0] == drawer]:
        del _draws[key]


def leave() -> None:
    """End the test or fixture that began last."""
    _drawers.pop()
