"""How many floating-point operations a training step needs at least, in closed form, and how fast the machine is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.parts.shapes import Shape
from benchmarks.parts.sides import HIDDEN, Method
from foreword.models.encoding.encoder import Encoded


def floor(shape: Shape, method: Method, rows: Sequence[Encoded], length: int) -> float:
    """Operations of one step, forward and backward, without padding, vocabulary or gradients of frozen weights.

    With D the width and T the real tokens of a row, a layer's matrices take 2 * 12 D^2 a token and its attention
    4 D a pair of a query and a column. Backward, frozen matrices take as much again and attention twice as much, since
    both sides of its products have gradients. The last layer needs its keys and values for every token (2 * 2 D^2) and
    the rest only where the answer is read. A causal model reads its soft prompt once a step, as keys and values, and
    nothing of the prompt's last layer but those. What is before a row sends nothing below the first layer's attention.
    """
    wide, layers = shape.width, shape.layers
    texts = [int((e.slot_S < 0).sum()) for e in rows]
    if method == "prompt" and shape.kind == "masked":
        return float(sum(_row(layers, wide, length + t, 0, read=1) for t in texts))
    total = sum(_row(layers, wide, t, length, read=1) for t in texts)
    if method == "prompt":
        total += _row(layers, wide, length, 0, read=0)
    for t in texts:
        # Of the first layer's attention only the prefix's keys and values have gradients; no projection has one.
        total -= 2 * 3 * wide**2 * t
        total -= 8 * wide * t * (length + t) - (2 * wide * t * (length + t) + 4 * wide * t * length)
    if method == "prefix-mlp":
        # Backward costs twice as much: the network's weights learn.
        total += 3 * 2 * length * (wide * HIDDEN + HIDDEN * 2 * layers * wide)
    return float(total)


def _row(layers: int, wide: int, tokens: int, ahead: int, read: int) -> int:
    """Forward and backward over a row of so many tokens after `ahead` columns, of which `read` positions are read."""
    columns = ahead + tokens
    middle = (layers - 1) * (2 * 2 * 12 * wide**2 * tokens + 3 * 4 * wide * tokens * columns)
    last = 2 * 2 * 2 * wide**2 * tokens + read * (2 * 2 * 10 * wide**2 + 3 * 4 * wide * columns)
    return middle + last


@dataclass(frozen=True)
class Rate:
    """The fastest of several matrix products of the kind that a layer has, in operations a second."""

    operations_per_second: float

    @staticmethod
    def measure(dtype: torch.dtype, device: str, seconds: float = 1.0) -> "Rate":
        rows = 1024 if device == "cpu" else 16384
        left, right = (torch.randn(s, dtype=torch.float32).to(device, dtype) for s in ((rows, 768), (768, 3072)))
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end or best == float("inf"):
            began = time.perf_counter()
            left @ right
            if device != "cpu":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        return Rate(2 * rows * 768 * 3072 / best)
