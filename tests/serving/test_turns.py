"""Keys take turns, and share places. python -m pytest tests/serving/test_turns.py"""

import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, replace

import pytest
import torch

import foreword.serving.classification as labelling
from foreword.errors import ConfigError
from foreword.models.load import load
from foreword.serving.engine import Engine, Room
from foreword.serving.fair_queue import SWEEP, FirstCome, Turns
from foreword.serving.protocol import Busy, Client, RowRequest, Sampling
from foreword.serving.quota import Quota, Shares, parse_size
from tests.seeds import new_seed
from tests.serving.made import artefact, saved

ROOM = Room(memory=2**22, compiled=2**22, cache=2**24, rows=4, waiting=700)


@dataclass(eq=False)
class Task:
    by: str
    cost: float
    ended: bool = False


class Line(deque[Task]):
    """First come, first served: what `Turns` is not."""

    def next(self) -> Task | None:
        return self[0] if self else None

    def take(self, task: Task) -> None:
        assert self.popleft() is task


def taken(queue: Turns[Task] | Line, count: int) -> list[Task]:
    done = []
    while len(done) < count and (task := queue.next()) is not None:
        queue.take(task)
        done.append(task)
    return done


def drawn(rng: random.Random, keys: str) -> list[Task]:
    tasks = [Task(key, float(rng.randint(1, 30))) for key in keys for _ in range(rng.randint(200, 300))]
    rng.shuffle(tasks)
    return tasks


@pytest.mark.parametrize(("kind", "fair"), [(Turns, True), (Line, False)])
def test_keys_that_all_wait_get_the_same_in_tokens_whatever_a_job_costs(kind, fair):
    """At any moment no two are further apart than one job of each; in a line they are."""
    rng = random.Random(new_seed())
    queue, tasks = kind(), drawn(rng, "ABC")
    for task in sorted(tasks, key=lambda task: task.by):  # all of A's came first
        queue.append(task)
    got, apart, orders = Counter(), 0.0, {key: [t for t in tasks if t.by == key] for key in "ABC"}
    for key in orders:
        orders[key] = [t for t in sorted(tasks, key=lambda task: task.by) if t.by == key]
    for task in taken(queue, 300):
        assert orders[task.by].pop(0) is task, "within a key first come, first served"
        got[task.by] += task.cost
        apart = max(apart, max(got[key] for key in "ABC") - min(got[key] for key in "ABC"))
    assert (apart <= 60) == fair


def test_whoever_comes_waits_for_one_job_and_not_for_what_the_others_have_waiting():
    rng = random.Random(new_seed())
    for _ in range(15):
        queue: Turns[Task] = Turns()
        for _ in range(500):
            queue.append(Task("A", float(rng.randint(1, 30))))
        taken(queue, rng.randint(1, 400))  # at the same standing, whoever waits longer is first
        new = Task("B", float(rng.randint(1, 500)))
        queue.append(new)
        assert queue.next() is new
        queue.take(new)
        # What it owes is its last job's cost: it comes again after the others got as much.
        again = Task("B", 1.0)
        queue.append(again)
        before = 0.0
        while (task := queue.next()) is not again and task is not None:
            queue.take(task)
            before += task.cost
        assert new.cost - 30 <= before <= new.cost + 30 or len(queue) == 1


def test_what_has_ended_is_dropped_and_does_not_fill_the_memory():
    queue: Turns[Task] = Turns()
    live = Task("A", 5.0)
    queue.append(live)
    for _ in range(30 * SWEEP):
        queue.append(task := Task("A", 1.0))
        task.ended = True
    assert len(queue) <= 2 * SWEEP
    assert taken(queue, 5) == [live] and len(queue) == 0 and queue.next() is None
    queue.append(one := Task("A", 1.0))
    queue.append(two := Task("B", 1.0))
    assert queue.next(frozenset("A")) is two and queue.next(frozenset("AB")) is None and queue.next() in (one, two)


def test_a_key_alone_may_have_all_places_and_keeps_nobody_out():
    shares = Shares(100)
    assert shares.refusal("A", 100) is None and shares.refusal("A", 101) == "all"
    shares.take("A", 100)
    assert shares.refusal("A", 1) == "all"
    assert shares.refusal("B", 50) is None and shares.refusal("B", 51) == "all"
    assert shares.refusal("B", 11, own=10) == "own" and shares.refusal("B", 10, own=10) is None
    shares.take("B", 50)
    assert shares.refusal("C", 33) is None and shares.refusal("C", 34) == "all"
    shares.give("A", 100)
    assert shares.refusal("B", 50) is None and shares.total == 50
    shares.give("B", 50)
    assert not shares.of and shares.total == 0


def test_limits_of_a_key_as_they_are_written():
    quota = Quota().with_limits(["rows=100", "bytes=1.5GB", "prompts=0"])
    assert quota.as_dict() == {"rows": 100, "prompts": 0, "bytes": 1_500_000_000}
    assert Quota.read(quota.as_dict()) == quota
    assert quota.with_limits(["rows=none"]).as_dict() == {"prompts": 0, "bytes": 1_500_000_000}
    assert Quota(rows=5).before(Quota(rows=9, uploads=2)) == Quota(rows=5, uploads=2)
    for wrong in ("rows", "rows=", "rows=-1", "rows=1.5", "rows=٣", "row=1", "bytes=x", "bytes=1XB", "bytes=-1", "=1"):
        with pytest.raises(ConfigError):
            Quota().with_limits([wrong])
    for wrong in ({"rows": -1}, {"rows": True}, {"rows": "1"}, {"row": 1}, {"rows": None}, [], "rows"):
        with pytest.raises(ValueError, match="limit"):
            Quota.read(wrong)  # type: ignore[arg-type]
    assert [parse_size(text) for text in ("5", "2 kb", "512MB", "1TB")] == [5, 2000, 512 * 10**6, 10**12]


# In the engine.


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture
def version(lm, tmp_path):
    return saved(tmp_path, "p", artefact(lm, "ahead"))


@pytest.mark.parametrize(
    ("other", "fair"), [("B", True), ("A", True), ("A", False)], ids=["another key", "the same key", "first come"]
)
def test_one_row_waits_for_a_pass_and_not_for_five_hundred_others(lm, version, monkeypatch, other, fair):
    """The last case is the control: one key, and its rows in the order in which they came."""
    if not fair:
        monkeypatch.setattr(labelling, "ByRequest", FirstCome)
    inner, passes, gate = labelling.score, [], threading.Event()

    def counted(lm, rows, bank, task_B):
        gate.wait(60)
        passes.append(len(rows))
        return inner(lm, rows, bank, task_B)

    monkeypatch.setattr(labelling, "score", counted)
    monkeypatch.setattr(type(lm), "batch_tokens", property(lambda _: 400))
    with Engine(lm, ROOM) as engine:
        many = [
            engine.classify([RowRequest(version, f"row {n} {i}") for i in range(50)], Client("A")) for n in range(10)
        ]
        until = time.monotonic() + 60
        while engine._jobs.qsize() < 440 and time.monotonic() < until:
            time.sleep(0.01)
        one = engine.classify([RowRequest(version, "mine")], Client(other))
        at: list[int] = []
        one.add_done_callback(lambda _: at.append(len(passes)))
        while engine._front.since is not None and time.monotonic() < until:
            time.sleep(0.01)
        gate.set()
        one.result(60)
        assert all(len(future.result(60)) == 50 for future in many)
        assert sum(passes) == 501
        assert (at[0] <= 3) == fair, (at, len(passes))


def test_rows_nobody_waits_for_are_not_computed(lm, version, monkeypatch):
    inner, rows, gate = labelling.score, [], threading.Event()

    def counted(lm, batch, bank, task_B):
        gate.wait(60)
        rows.append(len(batch))
        return inner(lm, batch, bank, task_B)

    monkeypatch.setattr(labelling, "score", counted)
    with Engine(lm, ROOM) as engine:
        first = engine.classify([RowRequest(version, "x")])
        gone = [engine.classify([RowRequest(version, f"{n}")] * 50, Client("A")) for n in range(10)]
        for future in gone:
            future.cancel()  # as a request does whose time is over, and one whose client has gone
        assert engine.load().waiting <= 1
        gate.set()
        first.result(60)
        engine.classify([RowRequest(version, "y")], Client("A")).result(60)
        assert sum(rows) <= 3


def test_one_key_s_long_texts_leave_places_for_another_s_short_one(lm, version):
    greedy = Sampling(max_tokens=200, temperature=0.0)
    with Engine(lm, ROOM) as engine:
        many = [engine.generate(RowRequest(version, f"row {n}"), greedy, None, Client("A")) for n in range(40)]
        until = time.monotonic() + 60
        while engine.load().generating < 3 and time.monotonic() < until:
            time.sleep(0.001)
        short = engine.generate(RowRequest(version, "mine"), replace(greedy, max_tokens=2), None, Client("B"))
        assert short.result.result(60)
        ended = sum(ticket.result.done() for ticket in many)
        assert ended < 30, "it did not wait for those that came before"
        while engine.load().generating > 3 and time.monotonic() < until:  # its place is free a moment later
            time.sleep(0.001)
        seen = max(engine.load().generating for _ in range(200) if not time.sleep(0.0005))
        assert seen <= 3, "the last place stays for another key"
        for ticket in many:
            ticket.cancel()
        # Without keys no place is left empty.
        free = [engine.generate(RowRequest(version, f"row {n}"), greedy) for n in range(8)]
        most = 0
        while not all(ticket.result.done() for ticket in free) and time.monotonic() < until:
            most = max(most, engine.load().generating)
            time.sleep(0.001)
        assert most == 4


def test_a_full_engine_lets_another_key_in_and_a_key_has_a_limit_of_its_own(lm, version, monkeypatch):
    gate = threading.Event()
    inner = labelling.score
    monkeypatch.setattr(labelling, "score", lambda *args: gate.wait(60) and inner(*args))
    with Engine(lm, replace(ROOM, waiting=100)) as engine:
        held = [engine.classify([RowRequest(version, "x")] * 50, Client("A")) for _ in range(2)]
        with pytest.raises(Busy, match=r"100 rows are waiting, 100 of them this key's"):
            engine.classify([RowRequest(version, "x")], Client("A"))
        held.append(engine.classify([RowRequest(version, "x")] * 50, Client("B")))
        with pytest.raises(Busy, match=r"50 of them this key's"):
            engine.classify([RowRequest(version, "x")], Client("B"))
        with pytest.raises(Busy, match=r"0 rows of this key are waiting and it may have 3"):
            engine.classify([RowRequest(version, "x")] * 4, Client("C", 3))
        held.append(engine.classify([RowRequest(version, "x")] * 3, Client("C", 3)))
        gate.set()
        assert [len(one.result(60)) for one in held] == [50, 50, 50, 3]
        assert torch.is_grad_enabled()
