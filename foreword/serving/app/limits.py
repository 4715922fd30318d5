"""How much one request, and all of them together, may ask for; and the two that are held before a route is found."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from foreword.serving.app.failures import refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """`text` in characters; `body` and `upload` in bytes; `seconds` for a whole answer.

    `rows` counts the texts and samples of one request, `requests` what is under way at once, `prompts` what is stored.
    """

    body: int = 2**20
    upload: int = 2**26
    text: int = 100_000
    tokens: int = 4096
    rows: int = 256
    requests: int = 512
    prompts: int = 100_000
    seconds: float = 120.0


class BodyLimit:
    """Reads a request's body, of which nobody need have said the length, and answers 413 where it is too long."""

    def __init__(self, app: App, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/prompts/")
        most = self.limits.upload if upload else self.limits.body
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        parts: list[bytes] = []
        size = int(told) if told.isdigit() else 0
        if size <= most:
            size = 0
            try:
                async with asyncio.timeout(self.limits.seconds):
                    while size <= most:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return
                        parts.append(message.get("body", b""))
                        size += len(parts[-1])
                        if not message.get("more_body", False):
                            break
            except TimeoutError:
                late = refusal(408, f"The body did not arrive within {self.limits.seconds:g} seconds.", "timeout")
                await late(scope, receive, send)
                return
        if size > most:
            large = refusal(413, f"The body has more than the {most:,} bytes allowed; send less.", "too_large")
            await large(scope, receive, send)
            return
        body = b"".join(parts)
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


class Gate:
    """Counts what is under way; turns requests away while there are too many, and while the server stops."""

    def __init__(self, app: App, server: Any):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        if self.server.draining:
            away = refusal(503, "The server is stopping; ask again in a moment.", "stopping", retry=5)
        elif self.server.active >= self.server.limits.requests:
            away = refusal(429, f"{self.server.active} requests are under way; ask again in a second.", "busy", retry=1)
        else:
            self.server.active += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.server.active -= 1
            return
        await away(scope, receive, send)
