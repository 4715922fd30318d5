"""The prompts of a server: a folder of names, each with versions that never change and a current one.

    DIR/artefacts/NAME/         what training wrote (or DIR/NAME/, or DIR itself): adopted as a version when it changes
    DIR/served/names/NAME/N/    version N, an artefact's folder
    DIR/served/names/NAME/served.json   which version is current, aliases, a share of the traffic, what was removed
    DIR/served/.revision        the last changes, each with the name that it is of; other processes look at it
    DIR/served/.lock            held by whoever changes something, and by whoever takes in what others changed

A process that is killed leaves the earlier state or the new one. A change is told before it is made, and who hears of
it waits for the lock, so that what a killed process did is seen by all. A folder that `served.json` does not name is
cleared away at the next start; a removed version's stays for `GRACE` seconds, for the requests that are under way.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from foreword.core.artefact import CARD, RECORD, TENSORS
from foreword.core.files import recover_folders, write_folder, write_whole
from foreword.errors import ConfigError, ForewordError
from foreword.serving.names import NAME, check_alias, check_name, parse

SERVED, NAMES, STATE = "served", "names", "served.json"
REVISION, LOCK = ".revision", ".lock"
GRACE = 60.0  # seconds
TOLD = 200  # changes that .revision holds; who is further behind reads everything
FILES = (TENSORS, RECORD, CARD)
PROMPTS = ("hard", "soft", "prefix")  # the forms that share one frozen model


class UnknownPrompt(ForewordError):  # noqa: N818 - what it is
    """No prompt, or no version of it, has this name."""


@final
@dataclass(frozen=True)
class Version:
    """One version of a prompt; its folder never changes."""

    name: str
    number: int
    folder: Path
    sha256: str

    @property
    def id(self) -> str:
        return f"{self.name}@{self.number}"


@final
@dataclass(frozen=True)
class Served:
    """A name with its versions. `share` sends that fraction of what names no version to another one."""

    name: str
    current: Version
    versions: tuple[Version, ...]
    aliases: dict[str, int]
    share: tuple[int, float] | None
    added: dict[int, str]


@final
class PromptStore:
    """Safe between threads and between processes. Reads are from memory; `refresh` takes in what others changed."""

    def __init__(self, root: Path, sources: Mapping[str, Path]):
        self.root = root
        self._sources = {name: folder for name, folder in sources.items() if NAME.fullmatch(name)}
        # Folders whose names cannot be a prompt's, and artefacts that are no prompts.
        self.skipped = sorted(sources.keys() - self._sources.keys())
        self.served_folder = root / SERVED
        self._states: dict[str, dict[str, Any]] = {}
        self._names: list[str] | None = None  # in order, once somebody asked
        self._mark, self._last = b"", b""  # what .revision held, and its last line
        self._turn = threading.Lock()  # to change something: held while files are written, and never by readers
        self._lock = threading.Lock()  # of what is in memory

    @staticmethod
    def open(root: str | Path, *, create: bool = False) -> "PromptStore":
        """A store or comparison, a folder of artefacts, one artefact's folder, or what was served before.

        Raises: ConfigError where the folder has none of it, unless it may be `create`d empty.
        """
        path = Path(root)
        sources = _sources(path)
        if not sources and not (path / SERVED / NAMES).is_dir() and not create:
            raise ConfigError(
                f"{path} holds no artefacts to serve: give the folder that `foreword train --tasks`, `foreword "
                "compare` or `foreword train --out` wrote, or an empty one with --create."
            )
        store = PromptStore(path, sources)
        (store.served_folder / NAMES).mkdir(parents=True, exist_ok=True)
        with store._alone(fcntl.LOCK_EX):
            store._catch_up(everything=True)
            store._clear_strays()
            store._clear_due()
            store._adopt()
        return store

    # Reading.

    def names(self) -> list[str]:
        with self._lock:
            if self._names is None:
                self._names = sorted(name for name, state in self._states.items() if state["current"] is not None)
            return self._names.copy()

    def served(self, name: str) -> Served:
        """Raises: UnknownPrompt."""
        with self._lock:
            state = self._state(name)
            versions = tuple(self._version(name, int(number)) for number in sorted(state["versions"], key=int))
            share = state["share"]
            return Served(
                name, self._version(name, state["current"]), versions, dict(state["aliases"]),
                None if share is None else (share["version"], share["fraction"]),
                {int(number): told["added"] for number, told in state["versions"].items()},
            )  # fmt: skip

    def resolve(self, model: str, draw: float = 0.0) -> Version:
        """The version that `name`, `name@3` or `name@alias` means; `draw` in [0, 1) falls in a share of `name` or not.

        Raises: UnknownPrompt, ConfigError.
        """
        name, at = parse(model)
        with self._lock:
            state = self._state(name)
            if at is None:
                share = state["share"]
                return self._version(name, share["version"] if share and draw < share["fraction"] else state["current"])
            number = state["aliases"].get(at) if isinstance(at, str) else at
            if number is None or str(number) not in state["versions"]:
                raise UnknownPrompt(f"{name} has no version {at}.")
            return self._version(name, number)

    def refresh(self) -> bool:
        """Take in what other processes changed; a look at one file where nothing did.

        Raises: ConfigError for a state that is damaged; the others are taken in, and of that one what was known.
        """
        if self._read_mark() == self._mark:
            return False
        with self._alone(fcntl.LOCK_SH):
            return self._catch_up()

    @contextlib.contextmanager
    def watch(self, seconds: float = 0.25, warn: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Refresh so often, and clear away what is due, on a thread of its own."""
        ended = threading.Event()

        def look() -> None:
            said = ""
            while not ended.wait(seconds):
                try:
                    self.refresh()
                    self.clear()
                except (ForewordError, OSError) as error:  # the disk is full, say: it may be better the next time
                    if str(error) != said:
                        warn(str(error))
                    said = str(error)

        thread = threading.Thread(target=look, name="foreword-store", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    # Changing.

    def add(self, name: str, contents: Mapping[str, bytes]) -> Version:
        """A new version, which becomes the current one at once; the bytes of the current one give that.

        Raises: ConfigError for a name that cannot be one; OSError where the disk refuses, and nothing has changed.
        """
        check_name(name)
        if not {RECORD, TENSORS} <= contents.keys() <= {*FILES}:
            raise ConfigError(f"A prompt has the files {', '.join(FILES)}; given are {', '.join(sorted(contents))}.")
        sha256 = _digest(contents)
        with self._changing():
            if name not in self._states and (self._folder(name) / STATE).exists():
                raise ConfigError(
                    f"{name} cannot be added: its folder holds a damaged state, or that of a name that differs in case "
                    "alone, which this disk does not tell apart."
                )
            state = self._states.get(name) or _empty()
            current = state["current"]
            if current is not None and state["versions"][str(current)]["sha256"] == sha256:
                return self._version(name, current)
            # The folder first and then the state that names it; what a process left that was killed in between goes.
            folder = self._folder(name) / str(state["next"])
            write_folder(folder, contents)
            self._write(name, _with_version(state, sha256))
            return self._version(name, state["next"])

    def roll_back(self, name: str, to: int | None = None) -> Version:
        """Make an earlier version current: the one before by default. Raises: UnknownPrompt, ConfigError."""
        with self._changing():
            state = self._state(name)
            if to is None:
                to = next((number for number in reversed(state["past"]) if str(number) in state["versions"]), None)
            if to is None:
                raise ConfigError(f"{name} has no version that was current before; name one.")
            self._known(name, state, to)
            if to == state["current"]:
                return self._version(name, to)
            # Going back takes the way back off the list; going anywhere else adds to it.
            back = [number for number in state["past"] if number != to]
            past = back if to in state["past"] else [*back, state["current"]]
            self._write(name, {**state, "current": to, "past": past[-100:]})
            return self._version(name, to)

    def alias(self, name: str, alias: str, number: int | None) -> None:
        """Another word for a version; None takes it away. Raises: UnknownPrompt, ConfigError."""
        check_alias(alias)
        with self._changing():
            state = self._state(name)
            aliases = {key: value for key, value in state["aliases"].items() if key != alias}
            if number is not None:
                self._known(name, state, number)
                aliases[alias] = number
            elif alias not in state["aliases"]:
                raise UnknownPrompt(f"{name} has no alias {alias}.")
            self._write(name, {**state, "aliases": aliases})

    def share(self, name: str, number: int | None, fraction: float = 0.0) -> None:
        """Send a fraction of what names no version to this one; None sends all to the current one again."""
        with self._changing():
            state = self._state(name)
            if number is not None:
                self._known(name, state, number)
                if not 0 < fraction <= 1:
                    raise ConfigError(f"A share of {fraction!r} cannot be; give one above 0 and at most 1.")
            share = None if number is None else {"version": number, "fraction": float(fraction)}
            self._write(name, {**state, "share": share})

    def remove(self, name: str, number: int | None = None) -> None:
        """The whole name, or one version that nothing points to. Raises: UnknownPrompt, ConfigError."""
        with self._changing():
            state = self._state(name)
            if number is None:
                gone = dict(state["gone"]) | {key: time.time() for key in state["versions"]}
                empty = {**_empty(), "next": state["next"], "adopted": state["adopted"], "gone": gone}
                self._write(name, empty)
                return
            self._known(name, state, number)
            used = {
                state["current"]: "the current version",
                **{v: f"the alias {k}" for k, v in state["aliases"].items()},
            }
            if state["share"]:
                used[state["share"]["version"]] = "a share of the traffic"
            if number in used:
                raise ConfigError(f"{name}@{number} is {used[number]}; change that first.")
            versions = {key: told for key, told in state["versions"].items() if int(key) != number}
            self._write(name, {**state, "versions": versions, "gone": {**state["gone"], str(number): time.time()}})

    # Parts of it.

    def _state(self, name: str) -> dict[str, Any]:
        state = self._states.get(name)
        if state is None or state["current"] is None:
            raise UnknownPrompt(f"There is no prompt named {name!r}.")
        return state

    def _known(self, name: str, state: dict[str, Any], number: int) -> None:
        if str(number) not in state["versions"]:
            raise UnknownPrompt(f"{name} has no version {number}.")

    def _version(self, name: str, number: int) -> Version:
        told = self._states[name]["versions"][str(number)]
        return Version(name, number, self._folder(name) / str(number), told["sha256"])

    def _folder(self, name: str) -> Path:
        return self.served_folder / NAMES / name

    @contextlib.contextmanager
    def _alone(self, how: int) -> Iterator[None]:
        """One thread of this process, and with LOCK_EX one process of all. Readers of what is in memory do not wait."""
        # On network file systems a shared lock needs a file that may be read, and the other one that may be written.
        with self._turn, (self.served_folder / LOCK).open("a+") as held:
            fcntl.flock(held, how)  # let go as the file is closed
            yield

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone, and on top of what the others did."""
        with self._alone(fcntl.LOCK_EX):
            with contextlib.suppress(ConfigError):  # another name's damage; who opens or watches is told
                self._catch_up()
            yield

    def _write(self, name: str, state: dict[str, Any]) -> None:
        self._tell([name])
        write_whole(self._folder(name) / STATE, json.dumps(state).encode())
        self._take(name, state)

    def _write_many(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Thousands at a time wait under another name until all are on the disk, and are then renamed."""
        if not states:
            return
        for name, state in states.items():
            _waiting(self._folder(name)).write_text(json.dumps(state))
        os.sync()
        self._tell(list(states))
        for name, state in states.items():
            _waiting(self._folder(name)).replace(self._folder(name) / STATE)
            self._take(name, state)

    def _take(self, name: str, state: dict[str, Any] | None) -> None:
        """Keep a name's state in memory; None where it has none any more."""
        with self._lock:
            self._names = None
            if state is None:
                self._states.pop(name, None)
            else:
                self._states[name] = state

    def _tell(self, names: list[str]) -> None:
        """Let other processes know whose states change now."""
        lines = self._mark.splitlines()
        # The clock, so that a mark is never told again, not even where somebody took the file away.
        number = max(time.time_ns(), int(self._last.partition(b" ")[0] or 0) + 1)
        lines += [f"{number + at} {name}".encode() for at, name in enumerate(names)]
        mark = b"\n".join(lines[-TOLD:])
        write_whole(self.served_folder / REVISION, mark)
        self._mark, self._last = mark, lines[-1]

    def _read_mark(self) -> bytes:
        try:
            return (self.served_folder / REVISION).read_bytes()
        except FileNotFoundError:
            return b""

    def _catch_up(self, everything: bool = False) -> bool:
        """Read the states that others changed. Raises: ConfigError for those that are damaged, at last."""
        mark = self._read_mark()
        if mark == self._mark and not everything:
            return False
        lines = [line for line in mark.splitlines() if re.fullmatch(rb"[0-9]{1,30} [\w.-]+", line)]
        if everything or self._last not in lines:
            with os.scandir(self.served_folder / NAMES) as entries:
                names = {entry.name for entry in entries if NAME.fullmatch(entry.name)} | self._states.keys()
        else:
            names = {line.partition(b" ")[2].decode() for line in lines[lines.index(self._last) + 1 :]}
        damage = []
        for name in names:
            file = self._folder(name) / STATE
            try:
                self._take(name, _parsed(file.read_bytes()))
            except FileNotFoundError:
                self._take(name, None)
            except ValueError as error:
                damage.append(f"{file} is damaged ({error}); take it away, and add the prompt again.")
        self._mark, self._last = mark, lines[-1] if lines else b""
        if damage:
            raise ConfigError(damage[0])
        return True

    def clear(self) -> None:
        """Clear away what was removed long enough ago."""
        with self._lock:
            due = any(_due(state) for state in self._states.values() if state["gone"])
        if due:
            with self._changing():
                self._clear_due()

    def _clear_due(self) -> None:
        changed = {}
        for name, state in self._states.items():
            due = _due(state)
            for key in due:
                shutil.rmtree(self._folder(name) / key, ignore_errors=True)
            if due:
                changed[name] = {**state, "gone": {k: v for k, v in state["gone"].items() if k not in due}}
        self._write_many(changed)

    def _clear_strays(self) -> None:
        """Folders that a killed process never named."""
        with os.scandir(self.served_folder / NAMES) as entries:
            folders = [e for e in entries if NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        for folder in folders:
            state = self._states.get(folder.name)
            if state is None:
                shutil.rmtree(folder.path, ignore_errors=True)
                continue
            with os.scandir(folder.path) as entries:
                stray = [e.path for e in entries if e.is_dir() and e.name not in {*state["versions"], *state["gone"]}]
            for path in stray:
                shutil.rmtree(path, ignore_errors=True)

    def _adopt(self) -> None:
        """What training put into the folder, where its bytes are not those that were adopted last."""
        changed: dict[str, dict[str, Any]] = {}
        for name, folder in self._sources.items():
            state = self._states.get(name) or _empty()
            last = state["adopted"] or {}
            try:
                if last.get("stamp") == _stamp(folder):
                    continue
                if _form(folder / RECORD) not in PROMPTS:
                    self.skipped.append(name)
                    continue
                target = self._folder(name) / str(state["next"])
                stamp = _link(folder, target)
                sha256 = _digest({file: (target / file).read_bytes() for file in FILES if (target / file).is_file()})
            except OSError as error:
                raise ConfigError(f"{folder} cannot be read ({error.strerror or error}).") from error
            state = {**state, "adopted": {"sha256": sha256, "stamp": stamp}}
            if last.get("sha256") == sha256:
                shutil.rmtree(target, ignore_errors=True)
            else:
                state = _with_version(state, sha256)
            changed[name] = state
        self._write_many(changed)


def _sources(path: Path) -> dict[str, Path]:
    """The artefacts that training wrote, by name."""
    if (path / RECORD).is_file():
        return {path.resolve().name: path}
    for parent in (path / "artefacts", path):
        if parent.is_dir():
            recover_folders(parent)
            # Hidden is what training has under way; `served` is ours.
            folders = [p.parent for p in sorted(parent.glob(f"[!.]*/{RECORD}"))]
            found = {folder.name: folder for folder in folders if folder != path / SERVED}
            if found:
                return found
    return {}


def _form(record: Path) -> str:
    try:
        return str(json.loads(record.read_text()).get("form"))
    except (ValueError, AttributeError):
        return "damaged"


def _empty() -> dict[str, Any]:
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


def _with_version(state: dict[str, Any], sha256: str) -> dict[str, Any]:
    """The state with its next version, which is current."""
    number, current = state["next"], state["current"]
    told = {"sha256": sha256, "added": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    return {
        **state,
        "current": number,
        "next": number + 1,
        "versions": {**state["versions"], str(number): told},
        "past": [*state["past"], *([] if current is None else [current])][-100:],
    }


def _waiting(folder: Path) -> Path:
    return folder / f".{STATE}.writing"


def _digest(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode() + contents[name])
    return digest.hexdigest()


def _due(state: dict[str, Any]) -> list[str]:
    """Numbers of the removed versions whose time is over, or in the future since somebody set the clock."""
    return [number for number, when in state["gone"].items() if not 0 <= time.time() - when < GRACE]


def _parsed(text: bytes) -> dict[str, Any]:
    """A name's state. Raises: ValueError where it is none."""
    state = json.loads(text)
    try:
        share, current = state["share"], state["current"]
        numbers = {int(number) for number, told in state["versions"].items() if told["sha256"] and told["added"]}
        named = {*state["aliases"].values(), *([share["version"]] if share else [])}
        named |= set() if current is None and not numbers else {current}
        whole = named <= numbers and state["next"] > max(numbers, default=0) and state.keys() >= _empty().keys()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not whole:
        raise ValueError("it names versions that it does not have")
    return state


def _stamp(folder: Path, at: int | None = None) -> list[list[int]]:
    """Which files these are. Adopted ones stay linked, so that no other file gets their number."""
    told = [os.stat(file if at is not None else folder / file, dir_fd=at) for file in (RECORD, TENSORS)]
    return [[one.st_ino, one.st_mtime_ns, one.st_size] for one in told]


def _link(source: Path, target: Path) -> list[list[int]]:
    """The same files in another folder, and their stamp: hard links, since what training replaces gets new files.

    Where links fail they are copies. All are of one folder, even where training puts another in its place meanwhile.
    """
    for left in reversed(range(10)):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)  # a name's first folder makes the name's own
        at = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in FILES:
                _link_file(name, at, target)
            return _stamp(source, at)
        except FileNotFoundError:  # replaced in between: now there is another folder of that name
            if not left:
                raise
        finally:
            os.close(at)
    raise AssertionError("the last try returns or raises")


def _link_file(name: str, at: int, target: Path) -> None:
    try:
        os.link(name, target / name, src_dir_fd=at)
    except FileNotFoundError:
        if name != CARD:
            raise
    except OSError:
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=at)) as file:
            (target / name).write_bytes(file.read())
