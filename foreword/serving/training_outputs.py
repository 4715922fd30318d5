"""Find artefacts where training wrote them, tell whether they are new, and take them over without copying."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from foreword.core.artefact import CARD, RECORD, TENSORS
from foreword.core.files import folders_in, present
from foreword.core.plain import read_json

SERVED = "served"
FILES = (TENSORS, RECORD, CARD)


def sources(path: Path) -> dict[str, Path]:
    """Return the folders of the artefacts that training wrote, by name."""
    if (present(path) / RECORD).is_file():
        return {path.resolve().name: present(path)}
    for parent in (path / "artefacts", path):
        # Hidden is what training has under way; `served` is ours.
        places = folders_in(parent).items()
        found = {name: at for name, at in places if (at / RECORD).exists() and parent / name != path / SERVED}
        if found:
            return found
    return {}


def form_of(record: Path) -> str:
    try:
        return str(read_json(record).get("form"))
    except (ValueError, AttributeError):
        return "damaged"


def stamp_of(folder: Path, at: int | None = None) -> list[list[int]]:
    """Return what tells an artefact's files from others: inode, time in ns and bytes of each. Adopted files stay
    linked, so that no other file gets their number."""
    told = [os.stat(file if at is not None else folder / file, dir_fd=at) for file in (RECORD, TENSORS)]
    return [[one.st_ino, one.st_mtime_ns, one.st_size] for one in told]


def link(source: Path, target: Path) -> list[list[int]]:
    """Link the same files into another folder and return their stamp: hard links, since what training replaces gets new
    files.

    If links fail they are copies. All are of one folder, even if training puts another in its place meanwhile.
    """
    for left in reversed(range(10)):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)  # a name's first folder makes the name's own
        at = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in FILES:
                _link_file(name, at, target)
            return stamp_of(source, at)
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


def digest(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode() + contents[name])
    return digest.hexdigest()
