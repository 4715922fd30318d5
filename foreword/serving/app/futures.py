"""Wait in the event loop for the engine's futures, and cancel them when nobody waits any more."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from foreword.serving.app.error_responses import Gone
from foreword.serving.app.limits import Receive

T = TypeVar("T")


async def outcome(future: Future[T], seconds: float) -> T:
    """Return the future's result; cancel the future if it takes longer than `seconds` or the waiting task is cancelled.

    Raises: TimeoutError, and the exception that the future holds.
    """
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    finally:
        future.cancel()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the work's result; cancel the work if the client disconnects first. The body must have been read by then.

    Raises: Gone if the client disconnects, and the exceptions of the work.
    """
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Gone
        return doing.result()
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
