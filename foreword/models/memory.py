"""Recognise that memory ran out, and go on with half of the work at once."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from foreword.errors import ModelError

Result = TypeVar("Result")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error is an allocation that failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "out of memory" in text


def fitting(
    work: Callable[[int], Result],
    most: int,
    least: int,
    refusal: str,
    *,
    unit: str = "tokens a batch",
    scale: int = 1,
    repeatable: Callable[[], bool] = lambda: True,
) -> tuple[Result, int]:
    """Return the result of `work(amount)` and the amount that fitted.

    The first amount is `most`. It is halved each time memory runs out, down to `least`, with one line on stderr that
    tells `amount * scale` in `unit`. After a failure the work is done again from its beginning, if it is `repeatable`.

    Raises: ModelError with `refusal`, in which `{}` stands for the amount, if the least doesn't fit.
    """
    amount = most
    while True:
        try:
            return work(amount), amount
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if amount <= least or not repeatable():
                raise ModelError(f"Out of memory with {refusal.format(amount)}.") from error
            amount = max(least, amount // 2)
            print(f"out of memory: going on with {amount * scale} {unit}", file=sys.stderr)
