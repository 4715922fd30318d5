"""The server under fire: every answer is of a version that was valid while it was asked for, whatever else goes on.

python -m pytest tests/serving/test_under_fire.py
"""

import re
import signal
import socket
import threading
import time

import httpx
import pytest

from foreword.models.load import load
from foreword.serving.keys import KeyRing
from tests.seeds import new_seed
from tests.serving.book import Book, Known, known
from tests.serving.fire import Fire, reader, writer
from tests.serving.processes import process

MEMORY, COMPILED = 300_000, 40_000  # bytes: some eight prompts of twenty-four in memory
OPTIONS = (
    "--model", "foreword-tiny-causal", "--create", "--memory", f"{MEMORY}B", "--compiled", f"{COMPILED}B",
    "--rows", "8", "--max-body", "20KB", "--max-upload", "300KB", "--cache", "64MB", "--seconds", "30",
)  # fmt: skip
KINDS = (
    "labels: 200", "labels: 404", "texts: 200", "texts: 404", "streams: 200", "leaves: gone", "torn: gone",
    "malformed: 400", "malformed: 413", "foreign: 404", "foreign: 200", "change: put 201", "change: delete 204",
    "change: roll back 200",
)  # fmt: skip
GROWTH = 48 * 2**20  # bytes, beyond what a warm server has


@pytest.mark.parametrize(
    "seconds", [(4.0, 4.0), pytest.param((60.0, 30.0, 30.0), marks=pytest.mark.slow)], ids=["short", "minutes"]
)
def test_under_fire(tmp_path, seconds):
    """Two who change prompts and six who use them, a kill -9 between any two of the times, the store the same."""
    seed = new_seed()
    print("seed", seed)
    lm = load("foreword-tiny-causal")
    first = known(lm, tmp_path / "made", "a", 8, seed, [])
    pool = {"a": first, "b": known(lm, tmp_path / "made", "b", 8, seed + 10**6, first)}
    root = tmp_path / "store"
    root.mkdir()
    ring = KeyRing.open(root)
    tokens = {tenant: ring.add([f"{tenant}-*"], [f"{tenant}-*"]) for tenant in pool}
    names = {tenant: [f"{tenant}-{n}" for n in range(12)] for tenant in pool}
    fire = Fire(free_port(), tokens, names, pool, limit=20_000)
    clients = [threading.Thread(target=writer, args=(fire, tenant, seed), daemon=True) for tenant in pool]
    clients += [threading.Thread(target=reader, args=(fire, "ab"[n % 2], seed + n), daemon=True) for n in range(6)]
    begun = False
    try:
        for turn, length in enumerate(seconds):
            with process(root, *OPTIONS, port=fire.port) as own:
                own.address()
                fire.down.clear()
                if not begun:
                    begun = True
                    for one in clients:
                        one.start()
                sizes = watched(own, fire, length, tokens["a"])
                warm = sizes[len(sizes) // 3]
                assert max(sizes[len(sizes) // 3 :]) - warm < GROWTH, sizes
                if turn < len(seconds) - 1:
                    fire.down.set()
                    fire.kills += 1
                    own.run.send_signal(signal.SIGKILL)
                    own.run.wait(30)
                    continue
                fire.ended.set()
                for one in clients:
                    one.join(120)
                    assert not one.is_alive(), "a client is still waiting for its answer"
                check_end(fire, own.address())
                assert own.end(signal.SIGTERM) == 0
                told = "\n".join(own.lines)
                assert not any(one in told for tenant in tokens.values() for one in (tenant, "Traceback"))
    finally:
        fire.ended.set()
    print(dict(sorted(fire.tally.counts.items())))
    assert not fire.tally.wrong, "\n".join(fire.tally.wrong[:20])
    assert fire.tally.counts["cut by a kill"]


def watched(own, fire: Fire, seconds: float, token: str) -> list[int]:
    """The process's memory ten times a second, while the tiers stay within their bytes; until all kinds took place."""
    sizes, until = [], time.monotonic() + seconds
    tries = until + 120
    with httpx.Client(base_url=fire.address, headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        while time.monotonic() < (until if all(fire.tally.counts[kind] for kind in KINDS) else tries):
            sizes.append(own.rss())
            page = http.get("/metrics").text
            held = {name: float(value) for name, value in re.findall(r"^foreword_bytes_(\w+) ([\d.e+]+)$", page, re.M)}
            assert held["in_memory"] <= MEMORY and held["compiled"] <= COMPILED, held
            time.sleep(0.1)
        assert float(re.findall(r"^foreword_evictions_total (\S+)$", page, re.M)[0]) > 0
    return sizes


def check_end(fire: Fire, address: str) -> None:
    """Nothing is under way any more, and each name is what the book says."""
    for tenant, names in fire.names.items():
        with fire.client(tenant) as http:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                page = http.get("/metrics").text
                if "foreword_generating 0.0" in page and "foreword_waiting 0.0" in page:
                    break
                time.sleep(0.1)
            assert "foreword_generating 0.0" in page and "foreword_waiting 0.0" in page
            listed = {one["name"] for one in http.get("/v1/prompts").json()["data"]}
            assert listed == {name for name in names if now(fire, name) is not None}
            for name in sorted(listed):
                one = now(fire, name)
                assert one and http.get(f"/v1/prompts/{name}").json()["labels"] == [*one.labels]


def now(fire: Fire, name: str):
    [one] = fire.book.valid(name, time.monotonic(), time.monotonic())
    return one


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_the_book_tells_right_from_wrong():
    """The checks above can fail: what was replaced, removed or refused is no answer any more."""
    one, two = (Known("a", b"", (f"{n}-no", f"{n}-yes"), (n,), (str(n),)) for n in (1, 2))
    book = Book()

    def valid(since: float = 0.0) -> list[str]:
        found = book.valid("x", since or time.monotonic(), time.monotonic())
        return ["none" if known is None else known.texts[0] for known in found]

    assert valid() == ["none"]
    book.begin("x", one)
    assert valid() == ["none", "1"]
    book.end("x", True)
    assert valid() == ["1"]
    time.sleep(0.01)
    since = time.monotonic()
    book.begin("x", two)
    book.end("x", True)
    time.sleep(0.01)
    assert (valid(), valid(since)) == (["2"], ["1", "2"])
    book.begin("x", None)
    book.end("x", False)
    time.sleep(0.01)
    assert valid() == ["2"] and book.current("x") is two
    book.begin("x", one)
    with pytest.raises(AssertionError, match="nobody"):
        book.settle("x", None)
    book.settle("x", two)
    time.sleep(0.01)
    assert valid() == ["2"] and book.current("x") is two
