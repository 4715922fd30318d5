"""Lock files between processes: the operating system holds a lock, and releases it when the process ends.

The process that held a lock removes its file. The file that was opened is compared with the one that has the name,
since two processes could otherwise hold two files of one name.
"""

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from foreword.core.plain import read_json
from foreword.errors import ConfigError

LONGEST_LOOK = 0.5  # seconds in which a lock that is only being looked at is let go
WAITING = 0.002  # seconds between two tries, growing to a hundred times that
UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


class HeldError(ConfigError):
    """Say that another process already does this work."""


@contextlib.contextmanager
def held(target: Path, what: str) -> Iterator[None]:
    """Keep other processes from a long piece of work on `target`, which they may go on reading.

    `what` names the target in messages. Raises: HeldError that says which process holds the lock.
    """
    with contextlib.ExitStack() as stack:
        try:
            holder = stack.enter_context(held_or_not(target))
        except OSError as error:
            raise ConfigError(
                f"{what} {target} cannot be written ({error.strerror or error}); name another folder."
            ) from error
        if holder is not None:
            raise HeldError(
                f"{what} {target} is being written by {holder}; wait until that has ended, stop it, or name another "
                "folder."
            )
        yield


@contextlib.contextmanager
def held_or_not(target: Path) -> Iterator[str | None]:
    """Hold the lock of `held`, for a process that has other work: yield None, or the process that holds the lock."""
    target = Path(os.path.realpath(target))
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(f".{target.name}.held")
    lock, _ = take(file, LONGEST_LOOK)
    if lock is None:
        yield _holder(file)
        return
    try:
        with contextlib.suppress(OSError):  # the file is another user's, or the disk is full
            os.ftruncate(lock, 0)
            os.lseek(lock, 0, os.SEEK_SET)
            os.write(lock, json.dumps(_self()).encode())
        yield None
    finally:
        give(file, lock)
        with contextlib.suppress(OSError):  # nothing is left of work that left nothing
            for folder in made:
                folder.rmdir()


def clear_locks(folder: Path) -> None:
    """Remove the locks in a folder that killed processes left."""
    for file in folder.glob(".*.held"):
        lock, _ = take(file, 0.0)
        if lock is not None:
            give(file, lock)


def take(file: Path, seconds: float) -> tuple[int | None, bool]:
    """Take a lock within so many seconds; return the open lock file, and whether it was there before.

    The file is -1 if the file system has no locks, and None if another process holds the lock. It was there if a
    process was killed or another waited. A file whose name was removed meanwhile locks nothing any more.
    """
    end, wait, left = time.monotonic() + seconds, WAITING, False
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            number = os.open(file, flags | os.O_EXCL, 0o666)
        except FileExistsError:
            left = True
            try:
                number = os.open(file, flags, 0o666)
            except PermissionError:  # another user's
                number = os.open(file, os.O_RDONLY)
        except FileNotFoundError:  # somebody has just removed the empty folder
            file.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            _lock(number)
            if os.name == "nt" or os.path.samestat(os.fstat(number), os.stat(file)):
                return number, left
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in UNSUPPORTED:
                os.close(number)
                return -1, False
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                os.close(number)
                raise
        os.close(number)
        if time.monotonic() >= end:
            return None, left
        time.sleep(wait)
        wait = min(wait * 1.5, WAITING * 100)


def give(file: Path, lock: int, *, keep: bool = False) -> None:
    if not keep:
        with contextlib.suppress(OSError):  # Windows keeps the name of an open file
            file.unlink()
    if lock >= 0:
        os.close(lock)


def _lock(number: int) -> None:
    """Lock an open file, or raise at once."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(number, 1 << 30, os.SEEK_SET)  # past what others may read
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _self() -> dict[str, str | int]:
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    program = "foreword" if program == "__main__.py" else program
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join([program, *sys.argv[1:]])[:500],
    }


def _holder(file: Path) -> str:
    """Describe the process that holds a lock, in words."""
    for _ in range(20):  # it may have taken it this very moment
        try:
            told = read_json(file, 2**16)
            return f"process {told['process']} on {told['host']} since {told['since']} ({told['command']})"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(WAITING)
    return "another process"
