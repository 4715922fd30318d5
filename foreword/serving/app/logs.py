"""Write one JSON line for each request to stderr: the key's id, the route and the seconds; never a text, and never a
key."""

import json
import logging
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any, final

from foreword.serving.app.error_responses import answer
from foreword.serving.app.limits import App, Message, Receive, Scope, Send
from foreword.serving.app.server import Server

Write = Callable[[str], None]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def event(**told: Any) -> str:
    """Return a line of the log as JSON, with the time."""
    return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **told})


@final
class Events(logging.Handler):
    """Write what a library logs as lines of the same form, without its traceback, which could quote a request."""

    def emit(self, record: logging.LogRecord) -> None:
        to_stderr(event(level=record.levelname.lower(), message=record.getMessage()))


class Log:
    """Give each request an id, answer exceptions that no other layer answered, and write its line and its metrics,
    outside of all other layers."""

    def __init__(self, app: App, server: Server, write: Write = to_stderr):
        self.app, self.server, self.write = app, server, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        name = uuid.uuid4().hex
        scope["told"] = told = {}
        status = 0
        own = [(b"x-request-id", name.encode()), (b"x-content-type-options", b"nosniff")]
        if self.server.replica:
            own.append((b"x-foreword-replica", self.server.replica.encode()))

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            # The kind and the place alone: an error's own words may quote what was asked.
            where = traceback.extract_tb(error.__traceback__)[-1]
            told["failed"] = f"{type(error).__name__} at {where.name}:{where.lineno}"
            if not status:
                await answer(error)(scope, receive, noted)
        finally:
            took = time.perf_counter() - began
            # What a client may choose freely would make as many metrics as it likes.
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", "unmatched")
            self.server.metrics.requests.labels(route, method, str(status)).inc()
            self.server.metrics.seconds.labels(route).observe(took)
            line = {"request": name, "method": method, "route": route, "status": status, "seconds": round(took, 4)}
            self.write(event(**line, **told))
