"""Store the prompts of a server: a folder of names, each with versions that never change and a current one.

    DIR/artefacts/NAME/         what training wrote (or DIR/NAME/, or DIR itself): adopted as a version when it changes
    DIR/served/names/NAME/N/    version N, an artefact's folder
    DIR/served/names/NAME/served.json   which version is current, aliases, a share of the traffic, what was removed
    DIR/served/.revision        the last changes, each with the name that it is of; other processes look at it
    DIR/served/.lock            held by a process while it changes something, or takes in what others changed

A process that is killed leaves the earlier state or the new one. A change is announced before it is made, and a process
that reads the announcement waits for the lock, so that all see what a killed process did. A folder that `served.json`
does not name is cleared away at the next start; a removed version's stays for `GRACE` seconds, for the requests that
are under way.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from foreword.core.artefact import CARD, MOST, RECORD, TENSORS
from foreword.core.files import read_folder, write_folder
from foreword.errors import ArtefactError, ConfigError, ForewordError
from foreword.serving.journal import NAMES, STATE, Journal, cleared, due, empty, with_version, without_versions
from foreword.serving.names import NAME, check_alias, check_name, parse
from foreword.serving.quota import Quota
from foreword.serving.training_outputs import FILES, SERVED, digest, form_of, link, sources, stamp_of

PROMPTS = ("hard", "soft", "prefix")  # the forms that share one frozen model
# Faults of the disk, and not of a name.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)


class UnknownPrompt(ForewordError):  # noqa: N818 - what it is
    """Report that no prompt, or no version of it, has this name."""


class OverQuota(ForewordError):  # noqa: N818 - what it is
    """Report that a key has as much in the store as it may have."""


@final
@dataclass(frozen=True)
class Version:
    """Identify one version of a prompt; its folder never changes."""

    name: str
    number: int
    folder: Path
    sha256: str

    @property
    def id(self) -> str:
        return f"{self.name}@{self.number}"


def read_version(version: Version) -> dict[str, bytes]:
    """Return a version's files, which are those that were stored. Raises: ArtefactError in a sentence without its
    path."""
    try:
        contents = _files_of(version.folder)
    except OSError as error:
        raise ArtefactError(f"{version.id} cannot be read ({error.strerror}).") from None
    if digest(contents) != version.sha256:
        raise ArtefactError(
            f"{version.id} was changed after it was stored: its hash differs. Add it again, or go back to another "
            "version."
        )
    return contents


def is_whole(version: Version) -> bool:
    """Return whether `read_version` would read the version."""
    try:
        read_version(version)
    except ArtefactError:
        return False
    return True


def _files_of(folder: Path) -> dict[str, bytes]:
    names = [name for name in FILES if name != CARD or (folder / name).exists()]
    return read_folder(folder, names, MOST)


@final
@dataclass(frozen=True)
class Served:
    """Hold a name with its versions. `share` is a version and the fraction of requests that it gets of those that name
    no version."""

    name: str
    current: Version
    versions: tuple[Version, ...]
    aliases: dict[str, int]
    share: tuple[int, float] | None
    added: dict[int, str]


@final
class PromptStore:
    """Store prompts for many threads and processes. Reads are from memory; `refresh` takes in what other processes
    changed."""

    def __init__(self, root: Path, sources: Mapping[str, Path]):
        self.root = root
        self._sources = {name: folder for name, folder in sources.items() if NAME.fullmatch(name)}
        # Folders whose names cannot be a prompt's, and artefacts that are no prompts.
        self.skipped = sorted(sources.keys() - self._sources.keys())
        self.served_folder = root / SERVED
        self._journal = Journal(self.served_folder)
        self._in_place: dict[str, Path] = {}  # of versions in a folder that cannot be written: where training put them
        self._unread: dict[str, str] = {}  # what training wrote and cannot be read

    @staticmethod
    def open(root: str | Path, *, create: bool = False) -> "PromptStore":
        """Open a store or comparison, a folder of artefacts, one artefact's folder, or what was served before.

        A folder that cannot be written is served as it is, and refuses changes. A name whose state is damaged stands in
        `damaged` and stays as it is; the others are served.

        Raises: ConfigError if the folder has none of these, unless it may be `create`d empty.
        """
        path = Path(root)
        result = sources(path)
        if not result and not (path / SERVED / NAMES).is_dir() and not create:
            raise ConfigError(
                f"{path} holds no artefacts to serve: give the folder that `foreword train --tasks`, `foreword "
                "compare` or `foreword train --out` wrote, or an empty one with --create."
            )
        store = PromptStore(path, result)
        served = store.served_folder / NAMES
        try:
            served.mkdir(parents=True, exist_ok=True)
            with store._journal.alone(fcntl.LOCK_EX):
                pass
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not (result or served.is_dir()):
                raise
            store._journal.read_only = True
        with store._journal.alone(fcntl.LOCK_EX):
            with contextlib.suppress(ConfigError):  # of one name; `damaged` tells, and the others are served
                if served.is_dir():
                    store._journal.catch_up(everything=True)
            if not store.read_only:
                store._clear_strays()
                store._clear_due()
            store._adopt()
        return store

    @property
    def read_only(self) -> bool:
        """Return whether the folder cannot be written: its prompts are served, and none is added, changed or
        removed."""
        return self._journal.read_only

    # Reading.

    @property
    def damaged(self) -> dict[str, str]:
        """Return the names that cannot be served, each with a sentence that says why."""
        return dict(sorted({**self._unread, **self._journal.damaged}.items()))

    def names(self) -> list[str]:
        return self._journal.names()

    @property
    def changes(self) -> int:
        """Return how often a state has changed, as far as this process knows: while it stays, so do the names."""
        return self._journal.changes

    def has(self, name: str) -> bool:
        state = self._journal.states.get(name)
        return state is not None and state["current"] is not None

    def served(self, name: str) -> Served:
        """Return a name with its versions. Raises: UnknownPrompt."""
        with self._journal.lock:
            state = self._state(name)
            versions = tuple(self._version(name, int(number)) for number in sorted(state["versions"], key=int))
            share = state["share"]
            return Served(
                name, self._version(name, state["current"]), versions, dict(state["aliases"]),
                None if share is None else (share["version"], share["fraction"]),
                {int(number): told["added"] for number, told in state["versions"].items()},
            )  # fmt: skip

    def resolve(self, model: str, draw: float = 0.0) -> Version:
        """Return the version that `name`, `name@3` or `name@alias` means; `draw` in [0, 1) falls in a share of `name`
        or not.

        Raises: UnknownPrompt, ConfigError.
        """
        name, at = parse(model)
        with self._journal.lock:
            state = self._state(name)
            if at is None:
                share = state["share"]
                return self._version(name, share["version"] if share and draw < share["fraction"] else state["current"])
            number = state["aliases"].get(at) if isinstance(at, str) else at
            if number is None or str(number) not in state["versions"]:
                raise UnknownPrompt(f"{name} has no version {at}.")
            return self._version(name, number)

    def refresh(self) -> bool:
        """Take in what other processes changed, and return whether they did; this reads one file if they did not.

        Raises: ConfigError for a state that is damaged; the others are taken in, and of the damaged one the known state
        stays.
        """
        if not self._journal.behind:
            return False
        with self._journal.alone(fcntl.LOCK_SH):
            return self._journal.catch_up()

    @contextlib.contextmanager
    def watch(self, seconds: float = 0.25, warn: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Refresh every `seconds`, and clear away what is due, on a separate thread."""
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

    def add(self, name: str, contents: Mapping[str, bytes], *, by: str = "", quota: Quota | None = None) -> Version:
        """Add a version and return it; it becomes current at once. The bytes of the current version give that version.

        It counts for the key `by` that adds it, whose `quota` it may not exceed.

        Raises: ConfigError for a name that cannot be one; OverQuota; OSError if the disk refuses, and nothing has
        changed.
        """
        check_name(name)
        if not {RECORD, TENSORS} <= contents.keys() <= {*FILES}:
            raise ConfigError(f"A prompt has the files {', '.join(FILES)}; given are {', '.join(sorted(contents))}.")
        sha256 = digest(contents)
        with self._journal.changing():
            if name not in self._journal.states and (self._journal.folder(name) / STATE).exists():
                raise ConfigError(
                    f"{name} cannot be added: its folder holds a damaged state, or that of a name that differs in case "
                    "alone, which this disk does not tell apart."
                )
            state = self._journal.states.get(name) or empty()
            current = state["current"]
            if current is not None and state["versions"][str(current)]["sha256"] == sha256:
                return self._version(name, current)
            size = sum(map(len, contents.values()))
            self._check_quota(state, by, size, quota or Quota())
            # The folder first and then the state that names it; what a process left that was killed in between goes.
            folder = self._journal.folder(name) / str(state["next"])
            write_folder(folder, contents)
            self._journal.write(name, with_version(state, sha256, by, size))
            return self._version(name, state["next"])

    def roll_back(self, name: str, to: int | None = None) -> Version:
        """Make an earlier version current, the one before by default; return it. Raises: UnknownPrompt, ConfigError."""
        with self._journal.changing():
            state = self._state(name)
            if to is None:
                known = [number for number in reversed(state["past"]) if str(number) in state["versions"]]
                to = next((number for number in known if is_whole(self._version(name, number))), None)
            if to is None:
                raise ConfigError(f"{name} has no version that was current before, and is whole; name one.")
            self._known(name, state, to)
            if to == state["current"]:
                return self._version(name, to)
            if not is_whole(self._version(name, to)):
                raise ConfigError(f"{name}@{to} is damaged; name another version, or add the prompt again.")
            # Going back takes the way back off the list; going anywhere else adds to it.
            back = [number for number in state["past"] if number != to]
            past = back if to in state["past"] else [*back, state["current"]]
            self._journal.write(name, {**state, "current": to, "past": past[-100:]})
            return self._version(name, to)

    def alias(self, name: str, alias: str, number: int | None) -> None:
        """Let `name@alias` mean a version; None takes the alias away. Raises: UnknownPrompt, ConfigError."""
        check_alias(alias)
        with self._journal.changing():
            state = self._state(name)
            aliases = {key: value for key, value in state["aliases"].items() if key != alias}
            if number is not None:
                self._known(name, state, number)
                aliases[alias] = number
            elif alias not in state["aliases"]:
                raise UnknownPrompt(f"{name} has no alias {alias}.")
            self._journal.write(name, {**state, "aliases": aliases})

    def share(self, name: str, number: int | None, fraction: float = 0.0) -> None:
        """Send a fraction of the requests that name no version to this one; None sends all to the current one again."""
        with self._journal.changing():
            state = self._state(name)
            if number is not None:
                self._known(name, state, number)
                if not 0 < fraction <= 1:
                    raise ConfigError(f"A share of {fraction!r} cannot be; give one above 0 and at most 1.")
            share = None if number is None else {"version": number, "fraction": float(fraction)}
            self._journal.write(name, {**state, "share": share})

    def remove(self, name: str, number: int | None = None) -> None:
        """Remove the whole name, or one version that nothing points to. Raises: UnknownPrompt, ConfigError."""
        with self._journal.changing():
            state = self._state(name)
            if number is None:
                bare = without_versions(state, list(state["versions"]))
                kept = {key: bare[key] for key in ("next", "adopted", "gone", "owed") if key in bare}
                self._journal.write(name, {**empty(), **kept})
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
            self._journal.write(name, without_versions(state, [str(number)]))

    # Parts of it.

    def _check_quota(self, state: dict[str, Any], by: str, size: int, quota: Quota) -> None:
        """Check that a key may add one more version to a name with this state. Raises: OverQuota if it may not."""
        used = self._journal.usage.of(by)
        first = not any(about.get("by") == by for about in state["versions"].values())
        for what, have, more, most in (
            ("prompts", used.prompts, int(first), quota.prompts),
            ("versions", used.versions, 1, quota.versions),
            ("bytes", used.bytes, size, quota.bytes),
        ):
            if by and more and most is not None and have + more > most:
                late = " What was removed counts until its folder is gone, a minute later." if what == "bytes" else ""
                raise OverQuota(
                    f"This key has added {have:,} {what} that are stored and may have {most:,}; {more:,} more are too "
                    f"many. Remove some first.{late}"
                )

    def _state(self, name: str) -> dict[str, Any]:
        state = self._journal.states.get(name)
        if state is None or state["current"] is None:
            raise UnknownPrompt(f"There is no prompt named {name!r}.")
        return state

    def _known(self, name: str, state: dict[str, Any], number: int) -> None:
        if str(number) not in state["versions"]:
            raise UnknownPrompt(f"{name} has no version {number}.")

    def _version(self, name: str, number: int) -> Version:
        told = self._journal.states[name]["versions"][str(number)]
        folder = self._in_place.get(told["sha256"], self._journal.folder(name) / str(number))
        return Version(name, number, folder, told["sha256"])

    def clear(self) -> None:
        """Clear away the versions that were removed more than `GRACE` seconds ago."""
        if self.read_only:
            return
        with self._journal.lock:
            some = any(due(state) for state in self._journal.states.values() if state["gone"])
        if some:
            with self._journal.changing():
                self._clear_due()

    def _clear_due(self) -> None:
        changed = {}
        for name, state in self._journal.states.items():
            gone = due(state)
            for key in gone:
                shutil.rmtree(self._journal.folder(name) / key, ignore_errors=True)
            if gone:
                changed[name] = cleared(state, gone)
        self._journal.write_many(changed)

    def _clear_strays(self) -> None:
        """Clear away folders that a killed process left and that no state names."""
        with os.scandir(self.served_folder / NAMES) as entries:
            folders = [e for e in entries if NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        for folder in folders:
            state = self._journal.states.get(folder.name)
            if folder.name in self._journal.damaged:  # kept for repair
                continue
            if state is None:
                shutil.rmtree(folder.path, ignore_errors=True)
                continue
            with os.scandir(folder.path) as entries:
                stray = [e.path for e in entries if e.is_dir() and e.name not in {*state["versions"], *state["gone"]}]
            for path in stray:
                shutil.rmtree(path, ignore_errors=True)

    def _adopt(self) -> None:
        """Adopt what training put into the folder, unless its bytes are those that were adopted last."""
        changed: dict[str, dict[str, Any]] = {}
        for name, folder in self._sources.items():
            if name in self._journal.damaged:
                continue
            state = self._journal.states.get(name) or empty()
            last = state["adopted"] or {}
            try:
                if last.get("stamp") == stamp_of(folder):
                    continue
                if form_of(folder / RECORD) not in PROMPTS:
                    self.skipped.append(name)
                    continue
                target = folder if self.read_only else self._journal.folder(name) / str(state["next"])
                stamp = stamp_of(folder) if self.read_only else link(folder, target)
                sha256 = digest(_files_of(target))
            except OSError as error:
                if not self.read_only:
                    shutil.rmtree(self._journal.folder(name) / str(state["next"]), ignore_errors=True)
                if error.errno in FULL:
                    raise ConfigError(f"{folder} cannot be taken over ({error.strerror}).") from error
                self._unread[name] = f"{folder} cannot be read ({error.strerror or error})."
                continue
            state = {**state, "adopted": {"sha256": sha256, "stamp": stamp}}
            if last.get("sha256") != sha256:
                state = with_version(state, sha256)
            elif not self.read_only:
                shutil.rmtree(target, ignore_errors=True)
            if self.read_only:
                self._in_place[sha256] = folder
                self._journal.take(name, state)
            else:
                changed[name] = state
        self._journal.write_many(changed)
