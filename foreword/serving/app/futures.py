"""From the engine's futures to the event loop: waiting for them, and giving up on them."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from foreword.serving.app.error_responses import Gone
from foreword.serving.app.limits import Receive

T = TypeVar("T")


async def outcome(future: Future[T], seconds: float) -> T:
    """Return the future's result. Where it takes too long, or whoever waits is cancelled, so is the future.

    Raises: TimeoutError, and whatever the future was given.
    """
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    finally:
        future.cancel()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the work's result; it is cancelled where the client goes first. The body has to be read by then.

    Raises: Gone, and whatever the work does.
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
