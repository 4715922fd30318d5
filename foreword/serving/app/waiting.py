"""From the engine's futures to the event loop: waiting for them, and giving up on them."""

import asyncio
from concurrent.futures import CancelledError, Future
from typing import TypeVar

T = TypeVar("T")


async def outcome(future: Future[T], seconds: float) -> T:
    """The future's result. Where it takes too long, or whoever asked has gone, it is cancelled.

    Raises: TimeoutError, and whatever the future was given.
    """
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except CancelledError as error:
        raise TimeoutError from error
    finally:
        future.cancel()
