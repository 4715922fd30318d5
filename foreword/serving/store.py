"""The prompts of a server: a folder of names, each with versions that never change and a current one.

    DIR/artefacts/NAME/         what training wrote (or DIR/NAME/, or DIR itself): adopted as a version when it changes
    DIR/served/names/NAME/N/    version N, an artefact's folder
    DIR/served/names/NAME/served.json   which version is current, aliases, a share of the traffic, what was removed
    DIR/served/.revision        rewritten after every change; other processes look at it
    DIR/served/.lock            held by whoever changes something

A process that is killed leaves the earlier state or the new one. A folder that `served.json` does not name is cleared
away; a removed version's folder stays for `GRACE` seconds, for the requests that are under way.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from foreword.core.artefact import CARD, RECORD, TENSORS
from foreword.core.files import recover_folders, write_folder, write_whole
from foreword.errors import ConfigError, ForewordError
from foreword.serving.names import NAME, check_alias, check_name, parse

SERVED, NAMES, STATE = "served", "names", "served.json"
REVISION, LOCK = ".revision", ".lock"
GRACE = 60.0
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
        self._stamps: dict[str, tuple[int, int]] = {}
        self._revision = ""
        self._lock = threading.RLock()

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
        with store._changing():
            store._read_all()
            store._clear()
            store._adopt()
        return store

    # Reading.

    def names(self) -> list[str]:
        with self._lock:
            return sorted(name for name, state in self._states.items() if state["current"] is not None)

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
        """Take in what other processes changed; a look at one file where nothing did."""
        with self._lock:
            if self._mark() == self._revision:
                return False
            self._read_all()
            return True

    @contextmanager
    def watch(self, seconds: float = 0.25) -> Iterator[None]:
        """Refresh so often on a thread of its own."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(seconds):
                self.refresh()

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
        sha256 = _digest(contents)
        with self._changing():
            state = self._states.get(name) or _empty()
            current = state["current"]
            if current is not None and state["versions"][str(current)]["sha256"] == sha256:
                return self._version(name, current)
            # The folder first and then the state that names it; what a process left that was killed in between goes.
            folder = self._folder(name) / str(state["next"])
            shutil.rmtree(folder, ignore_errors=True)
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

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone among threads and processes, and on top of what the others did."""
        with self._lock, (self.served_folder / LOCK).open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            try:
                self.refresh()
                yield
            finally:
                fcntl.flock(held, fcntl.LOCK_UN)

    def _write(self, name: str, state: dict[str, Any]) -> None:
        write_whole(self._folder(name) / STATE, json.dumps(state).encode())
        self._states[name] = state
        self._stamps[name] = _stamp(self._folder(name) / STATE)
        self._tell()

    def _tell(self) -> None:
        """Let other processes see that something changed."""
        mark = uuid.uuid4().hex
        write_whole(self.served_folder / REVISION, mark.encode())
        self._revision = mark

    def _mark(self) -> str:
        try:
            return (self.served_folder / REVISION).read_text()
        except OSError:
            return ""

    def _read_all(self) -> None:
        """Read the states that changed since they were last read."""
        mark = self._mark()
        found = set()
        with os.scandir(self.served_folder / NAMES) as entries:
            for entry in entries:
                if not NAME.fullmatch(entry.name):
                    continue
                file = Path(entry.path) / STATE
                try:
                    stamp = _stamp(file)
                    if self._stamps.get(entry.name) != stamp:
                        self._states[entry.name] = json.loads(file.read_text())
                        self._stamps[entry.name] = stamp
                except FileNotFoundError:
                    continue
                except ValueError as error:
                    raise ConfigError(f"{file} is damaged ({error}); take it away, and add the prompt again.") from None
                found.add(entry.name)
        for name in self._states.keys() - found:
            del self._states[name], self._stamps[name]
        self._revision = mark

    def _clear(self) -> None:
        """Folders of versions that were removed long enough ago, or that a killed process never named."""
        now = time.time()
        for name, state in list(self._states.items()):
            due = [key for key, when in state["gone"].items() if now - when >= GRACE]
            for key in due:
                shutil.rmtree(self._folder(name) / key, ignore_errors=True)
            if due:
                self._write(name, {**state, "gone": {k: v for k, v in state["gone"].items() if k not in due}})
            with os.scandir(self._folder(name)) as entries:
                stray = [e.path for e in entries if e.is_dir() and e.name not in {*state["versions"], *state["gone"]}]
            for path in stray:
                shutil.rmtree(path, ignore_errors=True)

    def _adopt(self) -> None:
        """What training put into the folder, where its bytes are not those that were adopted last.

        Thousands at a time: their states wait under another name until all are on the disk, and are then renamed.
        """
        changed: dict[str, dict[str, Any]] = {}
        for name, folder in self._sources.items():
            state = self._states.get(name) or _empty()
            last = state["adopted"] or {}
            try:
                stamp = [list(_stamp(folder / file)) for file in (RECORD, TENSORS)]
                if last.get("stamp") == stamp:
                    continue
                if _form(folder / RECORD) not in PROMPTS:
                    self.skipped.append(name)
                    continue
                contents = {file: (folder / file).read_bytes() for file in FILES if (folder / file).is_file()}
            except OSError as error:
                raise ConfigError(f"{folder} cannot be read ({error.strerror or error}).") from error
            sha256 = _digest(contents)
            state = {**state, "adopted": {"sha256": sha256, "stamp": stamp}}
            if last.get("sha256") != sha256:
                target = self._folder(name) / str(state["next"])
                shutil.rmtree(target, ignore_errors=True)
                _link(folder, target)
                state = _with_version(state, sha256)
            _waiting(self._folder(name)).write_text(json.dumps(state))
            changed[name] = state
        if not changed:
            return
        os.sync()
        for name, state in changed.items():
            _waiting(self._folder(name)).replace(self._folder(name) / STATE)
            self._states[name], self._stamps[name] = state, _stamp(self._folder(name) / STATE)
        self._tell()


def _sources(path: Path) -> dict[str, Path]:
    """The artefacts that training wrote, by name."""
    if (path / RECORD).is_file():
        return {path.resolve().name: path}
    for parent in (path / "artefacts", path):
        if parent.is_dir():
            recover_folders(parent)
            found = {p.parent.name: p.parent for p in sorted(parent.glob(f"*/{RECORD}"))}
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


def _stamp(file: Path) -> tuple[int, int]:
    told = file.stat()
    return told.st_mtime_ns, told.st_size


def _link(source: Path, target: Path) -> None:
    """The same files in another folder: hard links, since what training replaces gets new files; copies elsewhere."""
    target.mkdir(parents=True)  # a name's first folder makes the name's own
    for name in FILES:
        if not (source / name).is_file():
            continue
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)
