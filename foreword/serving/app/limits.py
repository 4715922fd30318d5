"""Limit what one request and all requests together may ask for, and enforce the limits that hold before a route is
found."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from foreword.serving.app.error_responses import Refused, answer
from foreword.serving.quota import NO_LIMITS, Quota, Shares

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Hold a server's limits: `text` in characters; `body` and `upload` in bytes; `seconds` for a whole answer, and for
    a body to arrive.

    `rows` counts the texts and samples of one request, `requests` those under way at once, `prompts` those stored. Each
    of the `uploads` checked at once may take a few times `upload` bytes of memory; bodies that arrive or are in use may
    take `uploads` times `upload`. A connection has `idle` seconds to bring a request; a body that brings fewer than
    `rate` bytes a second for `idle` seconds is given up. The engine is held if it makes no progress for `held` seconds
    while work waits. `key` holds the limits of a key for which none are set.
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
    connections: int = 2048
    idle: float = 10.0
    rate: int = 4096
    held: float = 30.0
    key: Quota = NO_LIMITS


class Places:
    """Count what is under way, for each key and in all: bodies that arrive, requests, uploads, and the bytes of
    bodies."""

    def __init__(self, limits: Limits):
        self.arriving, self.requests = Shares(limits.requests), Shares(limits.requests)
        self.uploads, self.bytes = Shares(limits.uploads), Shares(limits.uploads * limits.upload)

    @property
    def active(self) -> int:
        return self.arriving.total + self.requests.total


class RequestPlace:
    """Hold one request's share of the `Places`: it takes a request's place once its body is whole, and gives everything
    back at its end."""

    def __init__(self, places: Places, key: str, quota: Quota):
        self.places, self.key, self.quota = places, key, quota
        self.taken: dict[Shares, int] = {}

    def arrives(self) -> None:
        """Take a place for a body that begins to arrive. Raises: Refused."""
        self._take(self.places.arriving, self.quota.requests, "requests", 1.0)

    def grows(self, size: int) -> None:
        """Count `size` more bytes of the body. Raises: Refused."""
        self._take(self.places.bytes, None, "bytes of bodies", 2.0, size)

    def whole(self) -> None:
        """Exchange the place of an arriving body for that of a request, once the body is whole or there is none.
        Raises: Refused."""
        self._give(self.places.arriving)
        self._take(self.places.requests, self.quota.requests, "requests", 1.0)

    def uploads(self) -> None:
        """Take a place for a body that is a prompt to be checked. Raises: Refused."""
        self._take(self.places.uploads, self.quota.uploads, "uploads", 2.0)

    def leave(self) -> None:
        for shares in [*self.taken]:
            self._give(shares)

    def _take(self, shares: Shares, own: int | None, what: str, retry: float, count: int = 1) -> None:
        why, mine = shares.refusal(self.key, count, own), shares.of[self.key]
        if why is not None:
            words = f"{shares.total:,} {what} are under way" + (f", {mine:,} of them this key's" if self.key else "")
            if why == "own":
                words = f"{mine:,} {what} of this key are under way and it may have {own:,} at once"
            raise Refused(429, f"{words}; ask again in {retry:.0f} s.", "busy", retry=retry)
        shares.take(self.key, count)
        self.taken[shares] = self.taken.get(shares, 0) + count

    def _give(self, shares: Shares) -> None:
        if shares in self.taken:
            shares.give(self.key, self.taken.pop(shares))


class BodyLimit:
    """Count a body as it is read, with or without a stated length: 413 past its size limit, 408 past its time limit.

    Nothing is read ahead, so that a route that refuses has not taken the body into memory. The time limit is `seconds`
    in all, and `idle` seconds in which a body may be behind its least rate: a body that stops is given up after these.
    """

    def __init__(self, app: App, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limits, place, now = self.limits, scope.get("place"), asyncio.get_running_loop().time
        upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/prompts/")
        most = limits.upload if upload else limits.body
        large = Refused(413, f"The body has more than the {most:,} bytes allowed; send less.", "too_large")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length[:20]) > most:
            await answer(large)(scope, receive, send)
            return
        until, patience = now() + limits.seconds, now() + limits.idle
        size, whole = 0, False

        async def counted() -> Message:
            nonlocal size, whole, patience
            if whole:  # what follows is that the client goes
                return await receive()
            try:
                async with asyncio.timeout_at(min(until, patience)):
                    message = await receive()
            except TimeoutError:
                words = f"The body did not arrive within {limits.seconds:g} seconds."
                if patience < until:
                    words = f"The body stopped to arrive, or came with fewer than {limits.rate:,} bytes a second."
                raise Refused(408, words, "timeout") from None
            came = len(message.get("body", b""))
            patience = min(now() + limits.idle, patience + came / limits.rate)
            size += came
            if size > most:
                raise large
            if place is not None and came:
                place.grows(came)
            whole = message["type"] == "http.request" and not message.get("more_body", False)
            if whole and place is not None and brings_body(scope):
                place.whole()
            return message

        await self.app(scope, counted, send)


def brings_body(scope: Scope) -> bool:
    """Return whether the request has a body, which is read before the request is answered."""
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return False
    told = dict(scope["headers"])
    return b"transfer-encoding" in told or told.get(b"content-length", b"0").strip(b"0") != b""


class Gate:
    """Give each request its place; turn requests away while there are too many, and while the server stops.

    A key that may do nothing with a route is refused before its body is read.
    """

    def __init__(self, app: App, server: Any):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        server = self.server
        place = server.place(scope["key"])
        try:
            if server.draining:
                raise Refused(503, "The server is stopping; ask again in a moment.", "stopping", retry=5.0)
            if server.engine.failure is not None:
                raise Refused(503, server.engine.failure, "engine_failed", retry=30.0)
            if brings_body(scope):
                await server.admit(scope["key"], scope["method"], scope["path"])
                place.arrives()
            else:
                place.whole()
        except Refused as refused:
            place.leave()
            await answer(refused)(scope, receive, send)
            return
        scope["place"] = place
        try:
            await self.app(scope, receive, send)
        finally:
            place.leave()
