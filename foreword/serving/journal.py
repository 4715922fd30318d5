"""Keep the states of a store's names, in memory as on the disk, between threads and between processes.

A change is announced in `.revision` before it is made, and a process that reads the announcement waits for the lock: so
all see the changes of a process that was killed.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from foreword.core.files import write_whole
from foreword.core.plain import LONGEST, read_plain
from foreword.errors import ConfigError
from foreword.serving.names import NAME
from foreword.serving.quota import KeyUsage

NAMES, STATE = "names", "served.json"
REVISION, LOCK = ".revision", ".lock"
TOLD = 200  # changes that .revision holds; who is further behind reads everything


@final
class Journal:
    """Hold every name's state, as far as this process knows; a state is written inside `changing`."""

    def __init__(self, root: Path):
        self.root = root
        self.states: dict[str, dict[str, Any]] = {}
        self.damaged: dict[str, str] = {}  # names whose state cannot be read, and why
        self.lock = threading.Lock()  # of what is in memory
        self.changes = 0  # how often `take` was called
        self.usage = KeyUsage()
        self.read_only = False  # the folder cannot be written: nobody else changes it either, as far as we can lock
        self._names: list[str] | None = None  # in order, once somebody asked
        self._mark, self._last = b"", b""  # what .revision held, and its last line
        self._turn = threading.Lock()  # to change something: held while files are written, and never by readers

    def names(self) -> list[str]:
        """Return the names that are served, in order."""
        with self.lock:
            if self._names is None:
                self._names = sorted(name for name, state in self.states.items() if state["current"] is not None)
            return self._names.copy()

    @property
    def behind(self) -> bool:
        """Return whether other processes have changed something; this reads one file."""
        return self._read_mark() != self._mark

    @contextlib.contextmanager
    def alone(self, how: int) -> Iterator[None]:
        """Admit one thread of this process, and with LOCK_EX one process of all. Readers of the states in memory do not
        wait."""
        if self.read_only:
            with self._turn:
                yield
            return
        # On network file systems a shared lock needs a file that may be read, and the other one that may be written.
        with self._turn, (self.root / LOCK).open("a+") as held:
            fcntl.flock(held, how)  # let go as the file is closed
            yield

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of all processes, after taking in what they changed. Raises: ConfigError for a folder that
        cannot be written."""
        if self.read_only:
            raise ConfigError(
                f"{self.root} is read-only: its prompts can be used, and none can be added, changed or removed."
            )
        with self.alone(fcntl.LOCK_EX):
            with contextlib.suppress(ConfigError):  # another name's damage; who opens or watches is told
                self.catch_up()
            yield

    def write(self, name: str, state: dict[str, Any]) -> None:
        self.tell([name])
        write_whole(self.folder(name) / STATE, dumped(state))
        self.take(name, state)

    def write_many(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Write thousands of states at a time: all wait under another name until they are on the disk, and are then
        renamed."""
        if not states:
            return
        for name, state in states.items():
            _waiting(self.folder(name)).write_bytes(dumped(state))
        os.sync()
        self.tell(list(states))
        for name, state in states.items():
            _waiting(self.folder(name)).replace(self.folder(name) / STATE)
            self.take(name, state)

    def take(self, name: str, state: dict[str, Any] | None) -> None:
        """Keep a name's state in memory; None if it has none any more."""
        with self.lock:
            self._names = None
            self.changes += 1
            self.usage.swap(self.states.get(name), state)
            self.damaged.pop(name, None)
            if state is None:
                self.states.pop(name, None)
            else:
                self.states[name] = state

    def tell(self, names: list[str]) -> None:
        """Announce to other processes the names whose states change now."""
        lines = self._mark.splitlines()
        # The clock, so that a mark is never told again, not even where somebody took the file away.
        number = max(time.time_ns(), int(self._last.partition(b" ")[0] or 0) + 1)
        lines += [f"{number + at} {name}".encode() for at, name in enumerate(names)]
        mark = b"\n".join(lines[-TOLD:])
        write_whole(self.root / REVISION, mark)
        self._mark, self._last = mark, lines[-1]

    def _read_mark(self) -> bytes:
        try:
            return read_plain(self.root / REVISION, LONGEST)
        except FileNotFoundError:
            return b""

    def catch_up(self, everything: bool = False) -> bool:
        """Read the states that others changed; return whether there were any. Raises: ConfigError for a damaged one,
        after reading all."""
        mark = self._read_mark()
        if mark == self._mark and not everything:
            return False
        lines = [line for line in mark.splitlines() if re.fullmatch(rb"[0-9]{1,30} [\w.-]+", line)]
        if everything or self._last not in lines:
            with os.scandir(self.root / NAMES) as entries:
                names = {entry.name for entry in entries if NAME.fullmatch(entry.name)} | self.states.keys()
        else:
            names = {line.partition(b" ")[2].decode() for line in lines[lines.index(self._last) + 1 :]}
        damage = []
        for name in names:
            file = self.folder(name) / STATE
            self.damaged.pop(name, None)
            try:
                self.take(name, parsed(read_plain(file, LONGEST)))
            except FileNotFoundError:
                self.take(name, None)
            except (ValueError, OSError) as error:
                damage.append(
                    f"{file} is damaged ({error}); the other prompts are served. Put back a copy of it, or take its "
                    "folder away and add the prompt again."
                )
                self.damaged[name] = damage[-1]
        self._mark, self._last = mark, lines[-1] if lines else b""
        if damage:
            raise ConfigError(damage[0])
        return True

    def folder(self, name: str) -> Path:
        return self.root / NAMES / name


def _waiting(folder: Path) -> Path:
    return folder / f".{STATE}.writing"


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
    """Return the state with its next version, which is current. A key that added it is noted, with the version's
    bytes."""
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
    """Return the state without these versions; their folders stay for a while, and their bytes still count for their
    key."""
    versions = state["versions"]
    owed = {number: versions[number] for number in numbers if "by" in versions[number]}
    return {
        **state,
        "versions": {number: about for number, about in versions.items() if number not in numbers},
        "gone": {**state["gone"], **dict.fromkeys(numbers, time.time())},
        **({"owed": {**state.get("owed", {}), **owed}} if owed or "owed" in state else {}),
    }


def cleared(state: dict[str, Any], numbers: list[str]) -> dict[str, Any]:
    """Return the state once the folders of these removed versions are gone."""
    left = {**state, "gone": {number: when for number, when in state["gone"].items() if number not in numbers}}
    owed = {number: about for number, about in left.pop("owed", {}).items() if number not in numbers}
    return {**left, **({"owed": owed} if owed else {})}


def due(state: dict[str, Any]) -> list[str]:
    """Return the numbers of the removed versions whose time is over, or in the future since the clock was set back."""
    return [number for number, when in state["gone"].items() if not 0 <= time.time() - when < GRACE]


def dumped(state: dict[str, Any]) -> bytes:
    """Return a name's state as its file has it, with a hash of its content."""
    return json.dumps({**state, SEAL: _digest(state)}).encode()


def parsed(text: bytes) -> dict[str, Any]:
    """Return a name's state from its file, which may be older than the hash in it. Raises: ValueError for any other
    text."""
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
    """Check that a state's parts are valid. Raises: ValueError, or the error that reading a value of another type ends
    with."""
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
