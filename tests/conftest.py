"""Hermetic tests: no network, one thread, the same seed. No import of foreword here: the shape checks hook in later."""

import inspect
import os

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", COLUMNS="100"
)

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)

checked = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Check what has shapes among its annotations (the type checker sees to the rest).

    A check binds the arguments of every call, which took most of the time of many tests.
    """

    def decorated(target: Any) -> Any:
        holders = target.__mro__ if isinstance(target, type) else [target]
        annotations = [kind for holder in holders for kind in inspect.get_annotations(holder).values()]
        shaped = any("jaxtyping." in str(kind) for kind in annotations)
        return checked(typechecker=typechecker)(target) if shaped else target

    return decorated


jaxtyping.jaxtyped = jaxtyped


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
