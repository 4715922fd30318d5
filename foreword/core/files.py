"""Write files and folders that are there whole or not at all, even if processes are killed or write at the same moment.

While a file or folder is written, its name includes the process (`.NAME.PID-RANDOM.writing`); a rename puts it in its
place. A folder that is replaced waits as `.NAME.old` meanwhile. The process that writes NAME holds `.NAME.lock`, a lock
of the operating system that ends with the process. A killed process leaves at most those files, and the next write of
that name removes them. Reading takes no lock and writes nothing: a reader that comes between the two renames reads
`.NAME.old`.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from foreword.core.locks import WAITING, give, take
from foreword.core.plain import read_plain

LONGEST_WRITE = 120.0  # seconds that a writer waits for another one of the same name
TRIES = 200  # of a reader, while a folder is being replaced


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through its waiting name and a rename. Raises: OSError; what was there before stays."""
    with _writing(path) as path:
        waiting = _waiting(path)
        try:
            _write(waiting, data)
            waiting.replace(path)
        except OSError:
            waiting.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def remove_whole(path: Path) -> None:
    """Remove a file, and what a killed process left of its next version."""
    if not path.parent.is_dir():
        return
    with _writing(path) as path:
        path.unlink(missing_ok=True)


def write_folder(target: Path, contents: Mapping[str, bytes], refuse: Callable[[Path], None] | None = None) -> None:
    """Write a folder of files, in place of one of that name.

    `refuse` gets the path, and may raise because of what stands there; no other process can change that between this
    check and the write.

    Raises: OSError; what was there before stays.
    """
    with _writing(target) as target:
        if refuse:
            refuse(target)
        staging = _waiting(target)
        try:
            staging.mkdir()
            for name, data in contents.items():
                _write(staging / name, data)
            _sync(staging)
            _swap(staging, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Undo what a process left that was killed between the two renames of a replacement. For writers."""
    with _writing(target):
        pass


def present(target: Path) -> Path:
    """Return the path at which a folder is to be read: while it is replaced, that of the earlier folder."""
    aside = _aside(target)
    return aside if not os.path.exists(target) and os.path.isdir(aside) else target


def folders_in(parent: Path) -> dict[str, Path]:
    """Return the folders in a folder that are not hidden, by name and in order, with the path at which to read each."""
    try:
        names = {entry.name for entry in os.scandir(parent)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    names |= {name[1:].removesuffix(".old") for name in names if re.fullmatch(r"\..+\.old", name)}
    found = {name: present(parent / name) for name in sorted(names) if not name.startswith(".")}
    return {name: place for name, place in found.items() if place.is_dir()}


def read_folder(target: Path, names: Sequence[str], most: Mapping[str, int]) -> dict[str, bytes]:
    """Read these files of one folder, all of the same version, though another process may be replacing it.

    `most` is the largest size of each. Raises: OSError, FileNotFoundError if a file is not there.
    """
    wait = WAITING
    for left in reversed(range(TRIES)):
        for place in (target, _aside(target)):
            try:
                return _read_at(place, names, most)
            except (FileNotFoundError, NotADirectoryError) as error:
                last = error
        # Nobody writes: after a second look, which is for the moment in which a writer has just ended, that is all.
        if not left or (left < TRIES - 3 and not _lock_of(Path(os.path.realpath(target))).exists()):
            raise last
        time.sleep(wait)
        wait = min(wait * 1.2, WAITING * 10)
    raise AssertionError("the last try returns or raises")


def _read_at(place: Path, names: Sequence[str], most: Mapping[str, int]) -> dict[str, bytes]:
    if os.open not in os.supports_dir_fd:
        return {name: read_plain(place / name, most[name]) for name in names}
    at = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {name: read_plain(name, most[name], at) for name in names}
    finally:
        os.close(at)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Hold the lock of this name, clear away what killed processes left of it, and yield the path without links."""
    target = Path(os.path.realpath(target))  # a link stays, and leads to what is written
    if not target.name:
        raise OSError(errno.EBUSY, "the root of a disk cannot be replaced", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    file = _lock_of(target)
    lock, left = take(file, LONGEST_WRITE)
    if lock is None:
        raise OSError(errno.EBUSY, f"another process has been writing it for {LONGEST_WRITE:.0f} seconds", str(target))
    try:
        if left:
            _clear(target)
        _recover(target)
        yield target
    except BaseException as error:
        # Cut off at any point: the file stays and tells the next writer to look for what is left.
        give(file, lock, keep=not isinstance(error, Exception))
        raise
    else:
        give(file, lock)


def _clear(target: Path) -> None:
    """Remove what killed writers of this name left, but for `.NAME.old`."""
    stray = re.compile(rf"\.{re.escape(target.name)}\.[0-9]+-[0-9a-f]{{8}}\.writing")
    for entry in [entry for entry in os.scandir(target.parent) if stray.fullmatch(entry.name)]:
        _remove(Path(entry.path))


def _recover(target: Path) -> None:
    """Put the earlier folder back, or remove it if a new one took its place.

    Also remove what older versions of Foreword were writing when killed.
    """
    aside = _aside(target)
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
    _remove(target.with_name(f".{target.name}.writing"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _swap(staging: Path, target: Path) -> None:
    """Give the staged folder its name; an earlier folder of that name steps aside first and goes last."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if not target.exists():
        staging.rename(target)
        return
    aside = _aside(target)
    target.rename(aside)
    try:
        staging.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Let the names in a folder outlast a power cut, where the system can."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _waiting(path: Path) -> Path:
    return _beside(path, f"{os.getpid()}-{secrets.token_hex(4)}.writing")


def _aside(path: Path) -> Path:
    return _beside(path, "old")


def _lock_of(path: Path) -> Path:
    return _beside(path, "lock")


def _beside(path: Path, what: str) -> Path:
    """Return the path of a hidden file or folder beside this one; a path without a name, as `.`, is resolved first."""
    path = path if path.name else Path(os.path.realpath(path))
    return path.parent / f".{path.name}.{what}"
