"""Several processes and one name: whole or refused in a sentence, killed or not.

Run: python -m pytest tests/core/test_two_writers.py
"""

import fcntl
import multiprocessing
import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from foreword.core import locks
from foreword.core.artefact import RECORD, TENSORS, Artefact
from foreword.core.files import folders_in, present, read_folder, write_folder
from foreword.core.locks import HeldError, clear_locks, held
from foreword.core.plain import read_plain
from foreword.errors import ArtefactError, ConfigError
from tests.core.test_artefact import made
from tests.seeds import new_seed

CONTEXT = multiprocessing.get_context("fork")
MOST = {"a": 100, "b": 100}


def writer(target: Path, mark: bytes, count: int, go) -> None:
    go.wait()
    for number in range(count):
        data = mark + b"%d" % number
        write_folder(target, {"a": data, "b": data})


def reader(target: Path, seconds: float, go, out) -> None:
    go.wait()
    read, end = 0, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            found = read_folder(target, ("a", "b"), MOST)
            if found["a"] != found["b"]:
                raise AssertionError(f"two versions at once: {found}")
            read += 1
        out.put(read)
    except BaseException as error:
        out.put(repr(error))


def begin(function, *arguments):
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def test_writers_at_once_leave_one_whole_folder_and_readers_never_fail(tmp_path):
    target, go, out = tmp_path / "x", CONTEXT.Event(), CONTEXT.SimpleQueue()
    write_folder(target, {"a": b"0", "b": b"0"})
    writers = [begin(writer, target, mark, 25, go) for mark in (b"one", b"two", b"three")]
    readers = [begin(reader, target, 1.0, go, out) for _ in range(2)]
    go.set()
    for process in writers + readers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0, 0, 0]
    counts = [out.get() for _ in readers]
    assert all(isinstance(count, int) and count > 5 for count in counts), counts
    found = read_folder(target, ("a", "b"), MOST)
    assert found["a"] == found["b"]
    assert found["a"].endswith(b"24")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_killed_at_drawn_moments_nothing_is_lost_and_the_next_write_clears_up(tmp_path):
    draw, target = random.Random(new_seed(2**32)), tmp_path / "x"
    write_folder(target, {"a": b"0", "b": b"0"})
    for _ in range(8):
        go = CONTEXT.Event()
        writers = [begin(writer, target, mark, 10**6, go) for mark in (b"one", b"two")]
        go.set()
        time.sleep(draw.uniform(0.01, 0.15))
        for process in writers:
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
        found = read_folder(target, ("a", "b"), MOST)
        assert found["a"] == found["b"]
    write_folder(target, {"a": b"last", "b": b"last"})
    assert read_folder(target, ("a", "b"), MOST) == {"a": b"last", "b": b"last"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def holder(target: Path, ready) -> None:
    with held(target, "--out"):
        ready.set()
        time.sleep(60)


def test_who_holds_a_folder_is_told_and_a_killed_holder_holds_nothing(tmp_path):
    target, ready = tmp_path / "deep" / "x", CONTEXT.Event()
    process = begin(holder, target, ready)
    assert ready.wait(60)
    with pytest.raises(HeldError) as caught, held(target, "--out"):
        pass
    for word in (f"--out {target} is being written by process {process.pid} on {socket.gethostname()} since 2", "("):
        assert word in str(caught.value)
    with held(tmp_path / "deep" / "y", "--out"):  # another name is free
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    with held(target, "--out"), pytest.raises(HeldError), held(target, "--out"):  # by this process, too
        pass
    assert not list(target.parent.iterdir())


def test_locks_of_killed_processes_are_cleared_and_those_of_living_ones_are_not(tmp_path):
    ready = CONTEXT.Event()
    process = begin(holder, tmp_path / "x", ready)
    assert ready.wait(60)
    (tmp_path / ".y.held").write_text("{}")
    clear_locks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".x.held"]
    process.kill()
    process.join(60)
    clear_locks(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_for_which_no_parent_can_be_made_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .* cannot be written"), held(tmp_path / "file" / "x", "--out"):
        pass


def test_a_reader_between_two_renames_reads_the_earlier_folder_and_writes_nothing(tmp_path):
    folder = made().save(tmp_path / "x")
    folder.rename(tmp_path / ".x.old")
    (tmp_path / ".x.lock").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert Artefact.load(folder).form == "soft"
    assert present(folder) == tmp_path / ".x.old"
    assert folders_in(tmp_path) == {"x": tmp_path / ".x.old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    made("prefix").save(folder)
    assert Artefact.load(folder).form == "prefix"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_strays_of_another_name_stay(tmp_path):
    other = tmp_path / ".x.y.7-0123abcd.writing"
    own = tmp_path / ".x.7-0123abcd.writing"
    for path in (other, own):
        path.mkdir()
    (tmp_path / ".x.lock").touch()
    write_folder(tmp_path / "x", {"a": b"new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "x"]


def test_a_link_is_written_through(tmp_path):
    made().save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    made("prefix").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Artefact.load(tmp_path / "real").form == "prefix"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_disk_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(number: int) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", unsupported)
    write_folder(tmp_path / "x", {"a": b"1"})
    with held(tmp_path / "x", "--out"):
        write_folder(tmp_path / "x", {"a": b"2"})
    assert (tmp_path / "x" / "a").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", [RECORD, TENSORS])
@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "link to a fifo", "dangling"])
def test_what_is_no_plain_file_is_refused_at_once(name, kind, tmp_path):
    folder = made().save(tmp_path / "x")
    file, began = folder / name, time.monotonic()
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        file.symlink_to({"zero": "/dev/zero", "link to a fifo": tmp_path / "pipe", "dangling": "nowhere"}[kind])
    with pytest.raises(ArtefactError) as caught:
        Artefact.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert time.monotonic() - began < 20


def test_more_than_is_allowed_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # of which the disk has nothing
    with pytest.raises(OSError, match="are allowed"):
        read_plain(tmp_path / "large", 2**20)


def test_a_lock_that_is_a_pipe_holds_nobody_up(tmp_path):
    """Who has it cannot be read there; that somebody has it is said all the same."""
    pipe = tmp_path / ".x.held"
    os.mkfifo(pipe)
    other = os.open(pipe, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    began = time.monotonic()
    try:
        with pytest.raises(ConfigError, match="is being written by another process"), held(tmp_path / "x", "--out"):
            pass
    finally:
        os.close(other)
    assert time.monotonic() - began < 20
