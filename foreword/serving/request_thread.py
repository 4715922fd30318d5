"""Run the thread in front of the model: it reads prompts and tokenises texts, a request of each key in turn."""

import threading
import time
from collections.abc import Callable
from typing import final

from foreword.serving.fair_queue import Turns
from foreword.serving.jobs import EncodingJob


@final
class Front:
    """Run each request's `work` on one thread; requests that nobody waits for any more are dropped.

    `work` reports errors to its request. An error that it raises all the same ends the thread and is passed to
    `failed`.
    """

    def __init__(self, failed: Callable[[BaseException], None]):
        self._failed = failed
        self._turns: Turns[EncodingJob] = Turns()
        self._changed = threading.Condition()
        self._open = True
        self.since: float | None = None  # when the request that is being read was begun
        self._thread = threading.Thread(target=self._run, name="foreword-front", daemon=True)
        self._thread.start()

    def submit(self, reading: EncodingJob) -> None:
        with self._changed:
            self._turns.append(reading)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """End the thread once all submitted requests are read; wait for that for `seconds` at most."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join(seconds)

    def _next(self) -> EncodingJob | None:
        """Return the next request, or wait for one; None if the thread is to end."""
        with self._changed:
            while (reading := self._turns.next()) is None:
                self.since = None
                if not self._open:
                    return None
                self._changed.wait()
            self._turns.take(reading)
            self.since = time.monotonic()
            return reading

    def _run(self) -> None:
        try:
            while (reading := self._next()) is not None:
                reading.work()
                del reading  # while it waits for the next one, it holds nothing of the last
        except BaseException as error:
            self._failed(error)
        finally:
            self.since = None
