"""Run one thread that owns the model, labels rows in mixed batches and continues texts in a batch that changes.

Any thread may ask for work. A second thread reads prompts and tokenises, so that the model never waits for a disk.
Every row names its prompt; rows that end give their place to those that wait at the next step. Keys take turns on both
threads. An error ends the rows that it concerns; one after which nothing can be computed ends the engine, which reports
it to every client and does not come back.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, final

import torch

from foreword.core.artefact import Artefact
from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.serving.bank import SHARE, PromptBank
from foreword.serving.classification import Labeller
from foreword.serving.jobs import EncodingJob, Labelling, Room, TextJob, fail, is_fatal
from foreword.serving.protocol import ANYBODY, Busy, Client, Delta, Judged, Load, RowRequest, Sampling, Stopped
from foreword.serving.quota import Shares
from foreword.serving.request_encoding import RequestEncoder
from foreword.serving.request_thread import Front
from foreword.serving.text_generation import Writers, continues, widest

STOPPED = "The server stopped before this was finished; ask again in a moment."
AGAIN = 30.0  # seconds until another process may have taken the place of one that failed


@final
class Engine:
    """Implement `Works` over one frozen model. Close it, or use it in a `with`.

    Raises: ModelError for an encoder-decoder model, and if the room for generation holds no row.
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
        self._reader = RequestEncoder(lm, self.bank, widest(lm, room), room.work)
        self._labeller = Labeller(lm, self.bank)
        self._writers = Writers(lm, self.bank, lm.cache(room.rows) if continues(lm) else None, room.rows)
        self._jobs: queue.SimpleQueue[Labelling | TextJob | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unanswered: set[Future[Any]] = set()
        self._rows = Shares(self.room.waiting)  # those that were accepted and have not ended
        self._open, self._dropping, self._over = True, False, False
        self._failure: str | None = None
        self._warn = warn
        self._since: float | None = None  # when the step that is under way was begun
        self._ended = threading.Event()
        self._front = Front(self._fail)
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
        """Return whether the engine has stopped, by a call of `close` or by a failure."""
        return self._ended.is_set()

    @property
    def failure(self) -> str | None:
        """Return why the engine stopped without a call of `close`, in a sentence; None if it did not."""
        return self._failure

    @property
    def held(self) -> float:
        """Return the seconds since the step or the reading that is under way was begun; 0 if nothing is."""
        begun = [since for since in (self._since, self._front.since) if since is not None]
        return time.monotonic() - min(begun) if begun else 0.0

    # What a front calls, from any thread.

    def classify(self, rows: Sequence[RowRequest], by: Client = ANYBODY) -> Future[list[Judged]]:
        result: Future[list[Judged]] = Future()
        if not rows:
            result.set_result([])
            return result
        self._accept(len(rows), result, by)
        asked = tuple(rows)
        self._front.submit(EncodingJob(result, by.id, _size(asked), lambda: self._read_labelling(asked, result, by.id)))
        return result

    def generate(
        self, row: RowRequest, sampling: Sampling, on_delta: Callable[[Delta], None] | None = None, by: Client = ANYBODY
    ) -> TextJob:
        writing = TextJob(Future(), sampling, on_delta, by.id)
        self._accept(1, writing.result, by)
        self._front.submit(EncodingJob(writing.result, by.id, _size([row]), lambda: self._read_writing(row, writing)))
        return writing

    def check(self, artefact: Artefact) -> None:
        self.bank.check(artefact)

    def load(self) -> Load:
        accepted, generating = self._rows.total, len(self._writers.under_way)
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
            if self._failure is not None:
                self._front.close(1.0)
            return
        until = time.monotonic() + seconds
        while finish and self._rows.total and time.monotonic() < until:
            time.sleep(0.01)
        self._dropping = True
        self._front.close(max(1.0, until - time.monotonic()))
        self._jobs.put(None)
        self._ended.wait(max(1.0, until - time.monotonic()))

    def _accept(self, rows: int, result: Future[Any], by: Client) -> None:
        with self._lock:
            if not self._open:
                raise self._stopped("The server is stopping and takes nothing more; ask again in a moment.")
            self._check_room(rows, by)
            self._rows.take(by.id, rows)
            self._unanswered.add(result)

        def ended(_: Future[Any]) -> None:
            with self._lock:
                self._rows.give(by.id, rows)
                self._unanswered.discard(result)

        result.add_done_callback(ended)

    def _check_room(self, rows: int, by: Client) -> None:
        """Check that a key's rows have room. Raises: Busy if the engine is full, or the key has as many rows as it
        may."""
        why, total, mine = self._rows.refusal(by.id, rows, by.rows), self._rows.total, self._rows.of[by.id]
        if why is None:
            return
        words = f"{mine} rows of this key are waiting and it may have {by.rows}"
        if why == "all":
            words = f"{total} rows are waiting" + (f", {mine} of them this key's" if by.id else "")
        rate = self._labeller.rate
        wait = min(60.0, max(1.0, total / rate if rate else 1.0))
        raise Busy(f"{words}, and {rows} more are too many at present; ask again in {wait:.0f} s.", wait)

    def _stopped(self, words: str) -> Stopped:
        return Stopped(words, 5.0) if self._failure is None else Stopped(self._failure, AGAIN)

    # What the front thread does.

    def _read_labelling(self, asked: Sequence[RowRequest], result: Future[list[Judged]], by: str) -> None:
        try:
            self._go_on()
            jobs = self._reader.labelling(asked, result)
        except Exception as error:
            self._refuse(result, error)
            return
        for job in jobs:
            job.of.by = by
            self._put(job, result)

    def _read_writing(self, asked: RowRequest, writing: TextJob) -> None:
        try:
            self._go_on()
            self._reader.writing(asked, writing)
        except Exception as error:
            self._refuse(writing.result, error)
            return
        self._put(writing, writing.result)

    def _refuse(self, result: Future[Any], error: Exception) -> None:
        if is_fatal(error):
            raise error
        fail(result, error)

    def _put(self, job: Labelling | TextJob, result: Future[Any]) -> None:
        with self._lock:  # after `_stop` nobody looks there any more
            if not self._over:
                self._jobs.put(job)
                return
        fail(result, self._stopped(STOPPED))

    def _go_on(self) -> None:
        if self._dropping or self._over:
            raise self._stopped(STOPPED)

    # What the engine's thread does.

    @torch.no_grad()
    def _run(self) -> None:
        try:
            while self._take():
                for part in (self._labeller.step, self._writers.start, self._writers.step):
                    self._since = time.monotonic()
                    part()
        except BaseException as error:
            self._fail(error)
        finally:
            self._stop()

    def _take(self) -> bool:
        """Move new work to the queue where it waits; sleep if there is no work. Return False if the engine is to
        end."""
        idle = not (self._labeller.waiting or self._writers.waiting or self._writers.under_way)
        while True:
            self._since = None if idle else time.monotonic()
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

    def _fail(self, error: BaseException) -> None:
        """Record and report why the engine fails, and make it end. Called on the engine's thread or the front's."""
        # The kind and the place alone: an error's own words may quote what another client asked.
        where = traceback.extract_tb(error.__traceback__)[-1]
        with self._lock:
            if self._failure is None:
                self._failure = (
                    f"The engine has failed ({type(error).__name__} at {where.name}:{where.lineno}) and this process "
                    "answers nothing more; it has to be started again."
                )
            self._open = False
        self._warn(self._failure)
        self._dropping = True
        self._jobs.put(None)

    def _stop(self) -> None:
        """End the engine and fail every request that has not ended, so that nothing that was accepted is lost
        silently."""
        with self._lock:
            self._open, self._over = False, True
            rest = [*self._unanswered]  # wherever they are: what an error came upon may be in no queue
        self._since = None
        for result in rest:
            fail(result, self._stopped(STOPPED))
        self._ended.set()


def _size(asked: Sequence[RowRequest]) -> float:
    """Return the cost of reading rows: their characters, and 100 for each row, since one without any costs something
    too."""
    size = 0
    for one in asked:
        texts = (one.text or "", *one.fields.values(), *(text for _, text in one.messages), *one.options)
        size += 100 + sum(map(len, texts))
    return float(size)


def require_served(lm: FrozenLM) -> None:
    """Check that a model can be served. Raises: ModelError for a model that is not served."""
    if lm.kind == "seq2seq":
        raise ModelError(
            f"{lm.name!r} is an encoder-decoder model, which foreword serve does not read yet; use foreword predict "
            "and foreword evaluate with it, or serve a masked or a causal model."
        )
