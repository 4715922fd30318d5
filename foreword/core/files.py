"""Files and folders that are there whole or not at all, even if the process is killed while it writes them.

What is being written has a name of its own (`.NAME.writing`) and takes its place by a rename; a folder that is replaced
waits as `.NAME.old` meanwhile. A killed process leaves at most those, and the next write of that name clears them away.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through its waiting name and a rename. Raises: OSError; what was there before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = _waiting(path)
    try:
        _write(waiting, data)
        waiting.replace(path)
    except OSError:
        waiting.unlink(missing_ok=True)
        raise


def remove_whole(path: Path) -> None:
    """Remove a file, and what a killed process left of its next version."""
    path.unlink(missing_ok=True)
    _waiting(path).unlink(missing_ok=True)


def write_folder(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder of files, in place of one of that name. Raises: OSError; what was there before stays."""
    recover_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _waiting(target)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        for name, data in contents.items():
            _write(staging / name, data)
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Undo what a process left that was killed between the two renames of a replacement."""
    aside = _aside(target)
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(target)


def recover_folders(parent: Path) -> None:
    """`recover_folder` for every folder of that kind in one."""
    for aside in parent.glob(".*.old"):
        recover_folder(parent / aside.name.removeprefix(".").removesuffix(".old"))


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


def _waiting(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
