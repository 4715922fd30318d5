"""Hermetic tests: no network, one thread, the same seed. No import of foreword here: the shape checks hook in later."""

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
        annotations = () if isinstance(target, type) else target.__annotations__.values()
        plain = not isinstance(target, type) and not any("jaxtyping." in str(annotation) for annotation in annotations)
        return target if plain else checked(typechecker=typechecker)(target)

    return decorated


jaxtyping.jaxtyped = jaxtyped


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
