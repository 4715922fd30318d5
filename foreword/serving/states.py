"""What a store writes down of a name: which of its versions is current, aliases, a share, and what was removed."""

import json
import time
from typing import Any

GRACE = 60.0  # seconds that a removed version's folder stays


def empty() -> dict[str, Any]:
    return {
        "current": None,
        "versions": {},
        "aliases": {},
        "share": None,
        "past": [],
        "next": 1,
        "adopted": None,
        "gone": {},
    }


def with_version(state: dict[str, Any], sha256: str, by: str = "", size: int = 0) -> dict[str, Any]:
    """The state with its next version, which is current. A key that added it is noted, with the version's bytes."""
    number, current = state["next"], state["current"]
    told = {"sha256": sha256, "added": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    told |= {"by": by, "bytes": size} if by else {}
    return {
        **state,
        "current": number,
        "next": number + 1,
        "versions": {**state["versions"], str(number): told},
        "past": [*state["past"], *([] if current is None else [current])][-100:],
    }


def without_versions(state: dict[str, Any], numbers: list[str]) -> dict[str, Any]:
    """The state without these versions, whose folders stay for a while and whose bytes are still their key's."""
    versions = state["versions"]
    owed = {number: versions[number] for number in numbers if "by" in versions[number]}
    return {
        **state,
        "versions": {number: about for number, about in versions.items() if number not in numbers},
        "gone": {**state["gone"], **dict.fromkeys(numbers, time.time())},
        **({"owed": {**state.get("owed", {}), **owed}} if owed or "owed" in state else {}),
    }


def cleared(state: dict[str, Any], numbers: list[str]) -> dict[str, Any]:
    """The state once the folders of these removed versions are gone."""
    left = {**state, "gone": {number: when for number, when in state["gone"].items() if number not in numbers}}
    owed = {number: about for number, about in left.pop("owed", {}).items() if number not in numbers}
    return {**left, **({"owed": owed} if owed else {})}


def due(state: dict[str, Any]) -> list[str]:
    """Numbers of the removed versions whose time is over, or in the future since somebody set the clock."""
    return [number for number, when in state["gone"].items() if not 0 <= time.time() - when < GRACE]


def parsed(text: bytes) -> dict[str, Any]:
    """A name's state. Raises: ValueError where it is none."""
    state = json.loads(text)
    try:
        share, current = state["share"], state["current"]
        numbers = {int(number) for number, told in state["versions"].items() if told["sha256"] and told["added"]}
        named = {*state["aliases"].values(), *([share["version"]] if share else [])}
        named |= set() if current is None and not numbers else {current}
        whole = named <= numbers and state["next"] > max(numbers, default=0) and state.keys() >= empty().keys()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not whole:
        raise ValueError("it names versions that it does not have")
    return state
