"""The states of a store's names, in memory as on the disk, between threads and between processes.

A change is told in `.revision` before it is made, and who hears of it waits for the lock: so what a process that was
killed did is seen by all.
"""

import contextlib
import fcntl
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
from foreword.serving.quota import Usage
from foreword.serving.states import dumped, parsed

NAMES, STATE = "names", "served.json"
REVISION, LOCK = ".revision", ".lock"
TOLD = 200  # changes that .revision holds; who is further behind reads everything


@final
class Journal:
    """Every name's state, by what this process knows; `changing` to write one."""

    def __init__(self, root: Path):
        self.root = root
        self.states: dict[str, dict[str, Any]] = {}
        self.damaged: dict[str, str] = {}  # names whose state cannot be read, and why
        self.lock = threading.Lock()  # of what is in memory
        self.changes = 0  # how often `take` was called
        self.usage = Usage()
        self.read_only = False  # the folder cannot be written: nobody else changes it either, as far as we can lock
        self._names: list[str] | None = None  # in order, once somebody asked
        self._mark, self._last = b"", b""  # what .revision held, and its last line
        self._turn = threading.Lock()  # to change something: held while files are written, and never by readers

    def names(self) -> list[str]:
        """Those that are served, in order."""
        with self.lock:
            if self._names is None:
                self._names = sorted(name for name, state in self.states.items() if state["current"] is not None)
            return self._names.copy()

    @property
    def behind(self) -> bool:
        """Whether others have changed something; a look at one file."""
        return self._read_mark() != self._mark

    @contextlib.contextmanager
    def alone(self, how: int) -> Iterator[None]:
        """One thread of this process, and with LOCK_EX one process of all. Readers of what is in memory do not wait."""
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
        """Alone, and on top of what the others did. Raises: ConfigError for a folder that cannot be written."""
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
        """Thousands at a time wait under another name until all are on the disk, and are then renamed."""
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
        """Keep a name's state in memory; None where it has none any more."""
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
        """Let other processes know whose states change now."""
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
        """Read the states that others changed. Raises: ConfigError for those that are damaged, at last."""
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
