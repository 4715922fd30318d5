"""The engine: one thread that owns the model, labels rows in mixed batches and continues texts in a batch that changes.

Whoever asks may do so from any thread. A second thread reads prompts and tokenises, so that the model never waits for a
disk. Every row names its own prompt; rows that end give their place to those that wait at the next step.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, final

import torch

from foreword.core.artefact import Artefact
from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.serving.bank import SHARE, PromptBank
from foreword.serving.jobs import Labelling, Room, Writing, fail
from foreword.serving.labelling import Labeller
from foreword.serving.reading import Reader
from foreword.serving.work import Asked, Busy, Delta, Judged, Load, Sampling
from foreword.serving.writing import Writers, continues, widest

STOPPED = "The server stopped before this was finished; ask again in a moment."


@final
class Engine:
    """`Works` over one frozen model. Close it, or use it in a `with`.

    Raises: ModelError for an encoder-decoder model, and where the room for generation holds no row.
    """

    def __init__(
        self,
        lm: FrozenLM,
        room: Room | None = None,
        *,
        allow_other_weights: bool = False,
        warn: Callable[[str], None] = lambda line: None,
    ):
        require_served(lm)
        room = room or Room()
        self.lm, self.room = lm, room
        self.bank = PromptBank(lm, room.memory, room.compiled, allow_other_weights, room.work // SHARE, warn=warn)
        self._reader = Reader(lm, self.bank, widest(lm, room), room.work)
        self._labeller = Labeller(lm, self.bank)
        self._writers = Writers(lm, self.bank, lm.cache(room.rows) if continues(lm) else None, room.rows)
        self._jobs: queue.SimpleQueue[Labelling | Writing | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._accepted = 0
        self._open, self._dropping = True, False
        self._ended = threading.Event()
        self._front = ThreadPoolExecutor(1, thread_name_prefix="foreword-front")
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> str:
        return self.lm.name

    @property
    def continues(self) -> bool:
        return continues(self.lm)

    @property
    def ended(self) -> bool:
        """Whether it has stopped, as it was asked to or not."""
        return self._ended.is_set()

    # What a front calls, from any thread.

    def classify(self, rows: Sequence[Asked]) -> Future[list[Judged]]:
        result: Future[list[Judged]] = Future()
        if not rows:
            result.set_result([])
            return result
        self._accept(len(rows), result)
        self._front.submit(self._read_labelling, tuple(rows), result)
        return result

    def generate(self, row: Asked, sampling: Sampling, on_delta: Callable[[Delta], None] | None = None) -> Writing:
        writing = Writing(Future(), sampling, on_delta)
        self._accept(1, writing.result)
        self._front.submit(self._read_writing, row, writing)
        return writing

    def check(self, artefact: Artefact) -> None:
        self.bank.check(artefact)

    def load(self) -> Load:
        accepted, generating = self._accepted, len(self._writers.under_way)
        return Load(
            waiting=max(0, accepted - generating),
            generating=generating,
            batches=self._labeller.batches + self._writers.batches,
            rows_classified=self._labeller.rows,
            pieces_generated=self._writers.pieces,
            **self.bank.counts(),
        )

    def close(self, finish: bool = True, seconds: float = 30.0) -> None:
        with self._lock:
            first, self._open = self._open, False
        if not first:
            self._ended.wait(seconds)
            return
        until = time.monotonic() + seconds
        while finish and self._accepted and time.monotonic() < until:
            time.sleep(0.01)
        self._dropping = True
        self._front.shutdown()
        self._jobs.put(None)
        self._ended.wait(max(1.0, until - time.monotonic()))

    def _accept(self, rows: int, result: Future[Any]) -> None:
        with self._lock:
            if not self._open:
                raise Busy("The server is stopping and takes nothing more; ask again in a moment.", 5.0)
            if self._accepted + rows > self.room.waiting:
                rate = self._labeller.rate
                wait = min(60.0, max(1.0, self._accepted / rate if rate else 1.0))
                raise Busy(
                    f"{self._accepted} rows are waiting and {rows} more are too many at present; ask again in "
                    f"{wait:.0f} s.",
                    wait,
                )
            self._accepted += rows

        def ended(_: Future[Any]) -> None:
            with self._lock:
                self._accepted -= rows

        result.add_done_callback(ended)

    # What the front thread does.

    def _read_labelling(self, asked: Sequence[Asked], result: Future[list[Judged]]) -> None:
        try:
            self._go_on()
            jobs = self._reader.labelling(asked, result)
        except Exception as error:
            fail(result, error)
            return
        for job in jobs:
            self._jobs.put(job)

    def _read_writing(self, asked: Asked, writing: Writing) -> None:
        try:
            self._go_on()
            self._reader.writing(asked, writing)
        except Exception as error:
            fail(writing.result, error)
            return
        self._jobs.put(writing)

    def _go_on(self) -> None:
        if self._dropping:
            raise Busy(STOPPED, 5.0)

    # What the engine's thread does.

    @torch.no_grad()
    def _run(self) -> None:
        try:
            while self._take():
                self._labeller.step()
                self._writers.start()
                self._writers.step()
        finally:
            self._stop()

    def _take(self) -> bool:
        """New work to where it waits; sleeps where there is none. False when the engine is to end."""
        idle = not (self._labeller.waiting or self._writers.waiting or self._writers.under_way)
        while True:
            try:
                job = self._jobs.get(block=idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            idle = False
            if isinstance(job, Labelling):
                self._labeller.waiting.append(job)
            else:
                self._writers.waiting.append(job)

    def _stop(self) -> None:
        """Nothing that was accepted is lost silently: what has not ended is told so."""
        with self._lock:
            self._open = False
        rest: list[Future[Any]] = [w.result for w in (*self._writers.under_way, *self._writers.waiting)]
        rest += [job.of.result for job in self._labeller.waiting]
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    rest.append(job.result if isinstance(job, Writing) else job.of.result)
        for result in rest:
            fail(result, Busy(STOPPED, 5.0))
        self._ended.set()


def require_served(lm: FrozenLM) -> None:
    """Raises: ModelError for a model that is not served."""
    if lm.kind == "seq2seq":
        raise ModelError(
            f"{lm.name!r} is an encoder-decoder model, which foreword serve does not read yet; use foreword predict "
            "and foreword evaluate with it, or serve a masked or a causal model."
        )
