"""`foreword serve` as a process of its own: its address, its memory, what it started, and how it ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "FOREWORD_TEST_MARK"  # inherited by whatever a server starts


class Process:
    """A server that is running. Its log is in `lines`."""

    def __init__(self, root: Path, *options: str, port: int = 0):
        self.mark = uuid.uuid4().hex
        self.lines: list[str] = []
        # A group of its own, as a terminal gives one: Ctrl-C goes to all of it.
        self.run = subprocess.Popen(
            [sys.executable, "-m", "foreword", "serve", str(root), "--port", str(port), *options],
            env={**os.environ, MARK: self.mark, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.run.stderr is not None
        for line in self.run.stderr:
            self.lines.append(line.rstrip("\n"))

    def address(self, seconds: float = 240) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in [*self.lines]:
                found = re.match(r"(http://\S+) serves ", line)
                if found:
                    return found[1]
            assert self.run.poll() is None, "\n".join(self.lines)
            time.sleep(0.05)
        raise AssertionError("the server did not start:\n" + "\n".join(self.lines))

    def rss(self) -> int:
        """Bytes of memory of the process itself."""
        pages = int(Path(f"/proc/{self.run.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def family(self) -> list[int]:
        """The processes that came of it, itself included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Its exit status. SIGINT goes to the whole group."""
        if number == signal.SIGINT:
            os.killpg(self.run.pid, number)
        else:
            self.run.send_signal(number)
        code = self.run.wait(seconds)
        self.reader.join(10)
        return code


@contextlib.contextmanager
def process(root: Path, *options: str, port: int = 0) -> Iterator[Process]:
    """A server, of which nothing is left afterwards."""
    started = Process(root, *options, port=port)
    try:
        yield started
    finally:
        for pid in [*started.family()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.run.wait(30)
        started.reader.join(10)
        if started.run.stderr is not None:
            started.run.stderr.close()


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses in the kernel's own form and the ports at which a process listens."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(file))
            inodes |= {found[1]} if found else set()
    heard = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and parts[9] in inodes:
                address, _, port = parts[1].partition(":")
                heard.add((address, int(port, 16)))
    return heard


def is_loopback(address: str) -> bool:
    """127.0.0.1, ::1, or ::ffff:127.0.0.1, as /proc/net writes them."""
    return address.endswith("0100007F") or address == "00000000000000000000000001000000"
