"""Count the bytes that values take in memory, their Python objects included."""

import sys
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch


def bytes_of(value: Any, apart: Iterable[Any] = ()) -> int:
    """Return the bytes of a value and of all that it holds, each object once, without the objects in `apart`.

    Containers, tensors, arrays and dataclasses are followed. Other objects (a tokenizer, say) are shared, and not
    counted.
    """
    seen = {id(one) for one in apart}
    pending, total = [value], 0
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
            total += TENSOR
        elif isinstance(one, np.ndarray):
            total += sys.getsizeof(one)
            pending.append(one.base)
        elif isinstance(one, dict):
            total += sys.getsizeof(one)
            pending += one.keys()
            pending += one.values()
        elif isinstance(one, (list, tuple, set, frozenset)):
            total += sys.getsizeof(one)
            pending += one
        elif is_dataclass(one) and not isinstance(one, type):
            total += sys.getsizeof(one)
            pending.append(vars(one))  # with the properties that it has cached
        elif isinstance(one, (str, bytes, int, float)):
            total += sys.getsizeof(one)
    return total


TENSOR = 400  # what a tensor takes beside its numbers
