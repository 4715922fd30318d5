"""Hermetic tests: no network, one thread, the same seed. No import of foreword here: the shape checks hook in later."""

import inspect
import os

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", COLUMNS="100"
)

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch

from tests.seeds import VARIABLE, enter, leave, new_seed, run_seed

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


def pytest_configure() -> None:
    run_seed()  # before the workers start, which inherit it


def pytest_report_header() -> str:
    return f"{VARIABLE}={run_seed()} repeats what this run draws"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"{VARIABLE}={run_seed()} repeats what this run drew")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    enter(item.nodeid)
    try:
        return (yield)
    finally:
        leave()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Iterator[None]:
    """A fixture of a module draws the same whichever of its tests comes first."""
    wide = fixturedef.scope != "function"
    if wide:
        enter(f"{fixturedef.baseid}::{fixturedef.argname}[{getattr(request, 'param', '')}]")
    try:
        return (yield)
    finally:
        if wide:
            leave()


@pytest.fixture
def seed() -> int:
    """A seed of this test's own."""
    return new_seed()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
