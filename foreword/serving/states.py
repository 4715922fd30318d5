"""What a store writes down of a name: which of its versions is current, aliases, a share, and what was removed."""

import hashlib
import json
import math
import re
import time
from typing import Any

SEAL = "state_sha256"
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


def dumped(state: dict[str, Any]) -> bytes:
    """A name's state as its file has it, with a hash of all that it says."""
    return json.dumps({**state, SEAL: _digest(state)}).encode()


def parsed(text: bytes) -> dict[str, Any]:
    """A name's state; one of before states had a hash is read as well. Raises: ValueError where it is none."""
    try:
        state = json.loads(text)
        seal = state.pop(SEAL, None)
        if seal is not None and seal != _digest(state):
            raise ValueError("it was changed after it was written: its hash differs")
        if seal is None and state.keys() - empty().keys():
            raise ValueError("it has parts that none has")
        _check(state)
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from None
    return state


def _check(state: dict[str, Any]) -> None:
    """Raises: ValueError or whatever looking at something else ends with."""
    share, current, adopted = state["share"], state["current"], state["adopted"]
    numbers = {int(number) for number in state["versions"]}
    named = [*state["aliases"].values(), *([share["version"]] if share is not None else [])]
    named += [] if current is None and not numbers else [current]
    right = (
        all(str(int(number)) == number for number in [*state["versions"], *state["gone"]])
        and all(re.fullmatch("[0-9a-f]{1,64}", told["sha256"]) for told in state["versions"].values())
        and all(isinstance(told["added"], str) and told["added"] for told in state["versions"].values())
        and all(isinstance(when, int | float) and math.isfinite(when) for when in state["gone"].values())
        and all(_is_number(number) for number in [*named, *state["past"], state["next"]])
        and (share is None or (isinstance(share["fraction"], int | float) and 0 < share["fraction"] <= 1))
        and (adopted is None or isinstance(adopted, dict))
    )
    if not right:
        raise ValueError("it has parts that none has")
    if not (set(named) <= numbers and state["next"] > max(numbers, default=0)):
        raise ValueError("it names versions that it does not have")


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
