"""Read plain files of a bounded size: no pipe, no device, and no file that takes all memory."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

from foreword.core.text import parse_json

LONGEST = 2**28  # bytes of a file of JSON


def read_plain(path: Path | str, most: int, at: int | None = None) -> bytes:
    """Read a plain file of at most `most` bytes; `at` is the open folder that `path` is in.

    Raises: OSError, too if it is a device, a pipe, a folder or larger.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags, dir_fd=at)
    with os.fdopen(number, "rb") as file:
        info = os.fstat(number)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "it is a device, a pipe or a folder, and no plain file", str(path))
        if info.st_size > most:
            raise OSError(errno.EFBIG, f"it has {info.st_size:,} bytes; {most:,} are allowed", str(path))
        return file.read(info.st_size)


def read_json(path: Path, most: int = LONGEST) -> Any:
    """Read the value of a plain file of JSON. Raises: OSError as `read_plain` says, ValueError for anything else."""
    return parse_json(read_plain(path, most))
