"""How much one request, and all of them together, may ask for; and the limits that hold before a route is found."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from foreword.serving.app.failures import Refused, answer, refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """`text` in characters; `body` and `upload` in bytes; `seconds` for a whole answer, and for a body to arrive.

    `rows` counts the texts and samples of one request, `requests` what is under way at once, `prompts` what is stored.
    Of `uploads` at once each may take a few times `upload` bytes of memory.
    """

    body: int = 2**20
    upload: int = 2**26
    text: int = 100_000
    tokens: int = 4096
    rows: int = 256
    requests: int = 512
    prompts: int = 100_000
    seconds: float = 120.0
    uploads: int = 4


class BodyLimit:
    """Counts a body as it is read, whether or not its length was told: 413 past its limit, 408 past its time.

    Nothing is read ahead, so that a route which refuses has not taken the body into memory.
    """

    def __init__(self, app: App, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/prompts/")
        most = self.limits.upload if upload else self.limits.body
        large = Refused(413, f"The body has more than the {most:,} bytes allowed; send less.", "too_large")
        late = Refused(408, f"The body did not arrive within {self.limits.seconds:g} seconds.", "timeout")
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if told.isdigit() and int(told) > most:
            await answer(large)(scope, receive, send)
            return
        until = asyncio.get_running_loop().time() + self.limits.seconds
        size, whole = 0, False

        async def counted() -> Message:
            nonlocal size, whole
            if whole:  # what follows is that the client goes
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise late from None
            size += len(message.get("body", b""))
            if size > most:
                raise large
            whole = not message.get("more_body", False)
            return message

        await self.app(scope, counted, send)


class Gate:
    """Counts what is under way; turns requests away while there are too many, and while the server stops."""

    def __init__(self, app: App, server: Any):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        if self.server.draining:
            away = refusal(503, "The server is stopping; ask again in a moment.", "stopping", retry=5.0)
        elif self.server.active >= self.server.limits.requests:
            words = f"{self.server.active} requests are under way; ask again in a second."
            away = refusal(429, words, "busy", retry=1.0)
        else:
            self.server.active += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.server.active -= 1
            return
        await away(scope, receive, send)
