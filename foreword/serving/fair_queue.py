"""Take waiting work from its keys in turn, and charge each key what its work costs."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, final, runtime_checkable

SWEEP = 1024  # jobs from which those that nobody waits for any more are looked for


@runtime_checkable
class QueuedWork(Protocol):
    """Describe work that waits: its key, its cost in a unit that all jobs of a queue share, and whether it has
    ended."""

    @property
    def by(self) -> str: ...

    @property
    def cost(self) -> float: ...

    @property
    def ended(self) -> bool: ...


J = TypeVar("J", bound=QueuedWork)


@runtime_checkable
class KeyQueue(Protocol[J]):
    """Order the jobs of one key. `head` and `pop` need a queue that is not empty."""

    def __len__(self) -> int: ...

    def append(self, job: J) -> None: ...

    def head(self) -> J:
        """Return the next job, which stays in the queue."""
        ...

    def pop(self) -> J:
        """Take out the next job."""
        ...

    def drop_ended(self) -> None:
        """Take out the jobs that nobody waits for."""
        ...


@final
class FirstCome(Generic[J]):
    """Order jobs as they come: first come, first served."""

    def __init__(self) -> None:
        self._jobs: deque[J] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def append(self, job: J) -> None:
        self._jobs.append(job)

    def head(self) -> J:
        return self._jobs[0]

    def pop(self) -> J:
        return self._jobs.popleft()

    def drop_ended(self) -> None:
        self._jobs = deque(job for job in self._jobs if not job.ended)


@final
@dataclass(eq=False)
class Turns(Generic[J]):
    """Share a queue fairly between keys; within one key `line` orders the jobs. Not thread-safe.

    Start-time fair queueing (Goyal et al. 1996): each key has a clock that its work moves on by its cost, and the key
    whose clock is furthest behind is next. A key that had nothing waiting begins at the clock of the job that was taken
    last, so that it waits for the work that is under way and not for what others have in the queue. Example, jobs of
    cost 1: A has 500 waiting, of which 10 were taken at clocks 0 to 9, so that its clock is 10; B comes with two, at
    clocks 9 and 10. Next are B, A, B, A, A. What a key owes from before is at most the cost of its last job.
    """

    line: Callable[[], KeyQueue[J]] = FirstCome
    _jobs: dict[str, KeyQueue[J]] = field(default_factory=dict)  # of each key that has some; never an empty one
    _clock: dict[str, float] = field(default_factory=dict)
    _now: float = 0.0  # the clock of the job that was taken last
    _size: int = 0
    _sweep: int = SWEEP

    def __len__(self) -> int:
        return self._size

    def append(self, job: J) -> None:
        if self._size >= self._sweep:
            self._drop_ended()
        if job.by not in self._jobs:
            self._jobs[job.by] = self.line()
            self._clock[job.by] = max(self._clock.get(job.by, 0.0), self._now)
        self._jobs[job.by].append(job)
        self._size += 1

    def next(self, skip: frozenset[str] = frozenset()) -> J | None:
        """Return the job whose turn it is, which stays; None if none waits. Ended jobs are dropped. Keys in `skip` get
        no turn."""
        while True:
            keys = [key for key in self._jobs if key not in skip] if skip else self._jobs
            if not keys:
                return None
            key = min(keys, key=self._clock.__getitem__)
            job = self._jobs[key].head()
            if not job.ended:
                return job
            self._leave(key)

    def take(self, job: J) -> None:
        """Take out the job that `next` returned, and charge its cost to its key."""
        assert self._jobs[job.by].head() is job, "only the job whose turn it is is taken"
        self._now = max(self._now, self._clock[job.by])  # a key that was skipped may be behind
        self._clock[job.by] += job.cost
        self._leave(job.by)

    def _leave(self, key: str) -> None:
        self._jobs[key].pop()
        self._size -= 1
        if not len(self._jobs[key]):
            del self._jobs[key]
            self._clock = {key: at for key, at in self._clock.items() if key in self._jobs or at > self._now}

    def _drop_ended(self) -> None:
        """Drop jobs that have ended, wherever they stand: else clients that ask and disconnect would fill the
        memory."""
        for jobs in self._jobs.values():
            jobs.drop_ended()
        self._jobs = {key: jobs for key, jobs in self._jobs.items() if len(jobs)}
        self._size = sum(map(len, self._jobs.values()))
        self._sweep = max(SWEEP, 2 * self._size)
