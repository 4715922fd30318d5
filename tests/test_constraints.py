"""Every library that an installation brings is pinned. python -m pytest tests/test_constraints.py"""

from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINNED = Path(__file__).parents[1] / "constraints.txt"


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Add what a distribution needs with these extras, as far as it is installed here."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for line in requires(name) or []:
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            try:
                needed(canonicalize_name(one.name), frozenset(one.extras), seen)
            except PackageNotFoundError:
                seen.discard((canonicalize_name(one.name), frozenset(one.extras)))


def test_what_is_installed_is_pinned():
    seen: set[tuple[str, frozenset[str]]] = set()
    needed("foreword", frozenset({"test", "lint"}), seen)
    lines = [line for line in PINNED.read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert all(pins.values()) and len(pins) == len(lines)
    # What the system's own tools bring, and the source tree itself.
    missing = {name for name, _ in seen} - pins.keys() - {"foreword", "setuptools", "pip", "wheel"}
    assert not {name for name in missing if not name.startswith(("nvidia", "triton", "cuda"))}
    assert {"torch", "fastapi"} <= {name for name, _ in seen}
