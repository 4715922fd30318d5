"""Send server-sent events to a client that may read slowly, stop reading, or disconnect."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Response

from foreword.serving.app.error_responses import Gone
from foreword.serving.app.futures import unless_gone
from foreword.serving.app.limits import Receive, Scope, Send

LAST = b"data: [DONE]\n\n"
LINGER = 5.0  # seconds beyond the limit, for a last event that says so


def data(value: dict[str, Any], event: str | None = None) -> bytes:
    """Encode a value as one server-sent event."""
    kind = f"event: {event}\n" if event else ""
    return f"{kind}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


class EventStream(Response):
    """Send events as they are made. The generator is closed however the stream ends, also if the reader leaves or
    stalls.

    `ended` is called at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], seconds: float, ended: Callable[[], None]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.seconds, self.ended = events, seconds, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.timeout(self.seconds + LINGER):
                await unless_gone(receive, self._send(send))
        except Gone:
            scope["told"]["gone"] = True
        finally:
            await self.events.aclose()
            self.ended()

    async def _send(self, send: Send) -> None:
        async for event in self.events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
