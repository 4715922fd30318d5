"""Files and folders are there whole or not at all. Run: python -m pytest tests/core/test_files.py"""

from pathlib import Path

import pytest

from foreword.core import files
from foreword.core.files import recover_folder, remove_whole, write_folder, write_whole


class Killed(BaseException):
    """A process that is gone: no handler sees it, and nothing is cleaned up after it."""


NEW, OLD = {"a": b"new", "b": b"new"}, {"a": b"old"}


def read(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_killed_write_leaves_the_old_file_and_the_next_one_clears_up(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x"
    write_whole(path, b"old")

    def die(self, target):
        raise Killed

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(Killed):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_whole(path, b"newer")
    assert read(path.parent) == {"x": b"newer"}


def test_removing_clears_what_was_waiting(tmp_path):
    write_whole(tmp_path / "x", b"")
    (tmp_path / ".x.writing").write_bytes(b"half")
    remove_whole(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", range(1, 4))
def test_killed_at_any_rename_a_folder_is_old_or_new(tmp_path, monkeypatch, at):
    target, calls = tmp_path / "x", 0
    write_folder(target, OLD)
    own = Path.rename

    def dying(self, to):
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return own(self, to)

    monkeypatch.setattr(Path, "rename", dying)
    if at == 3:  # there are two renames; then the old folder is removed
        monkeypatch.setattr(
            files.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(Killed()) if calls == 2 else None
        )
    with pytest.raises(Killed):
        write_folder(target, NEW)
    monkeypatch.undo()
    recover_folder(target)
    assert read(target) == (NEW if at == 3 else OLD)
    write_folder(target, NEW)
    assert read(target) == NEW
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_disk_that_refuses_leaves_the_old_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "x", OLD)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "x", NEW)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "y", b"")
    assert read(tmp_path / "x") == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
