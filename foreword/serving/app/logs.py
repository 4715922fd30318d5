"""One JSON line a request on stderr: who, what, how long; never a text, and never a key."""

import json
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from foreword.serving.app.failures import answer
from foreword.serving.app.limits import App, Message, Receive, Scope, Send
from foreword.serving.app.server import Server

Write = Callable[[str], None]


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Log:
    """Outermost: gives each request an id, answers what nothing else did, and writes its line and its metrics."""

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

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", name.encode())]
                if self.server.replica:
                    headers.append((b"x-foreword-replica", self.server.replica.encode()))
                message = {**message, "headers": headers}
            await send(message)

        trace = None
        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            # The kind and the place alone: an error's own words may quote what was asked.
            where = traceback.extract_tb(error.__traceback__)[-1]
            trace = f"{type(error).__name__} at {where.name}:{where.lineno}"
            if not status:
                await answer(error)(scope, receive, noted)
        finally:
            took = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "unmatched")
            self.server.metrics.requests.labels(route, scope["method"], str(status)).inc()
            self.server.metrics.seconds.labels(route).observe(took)
            line: dict[str, Any] = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "request": name, "method": scope["method"],
                "route": route, "status": status, "seconds": round(took, 4), **told,
            }  # fmt: skip
            if trace:
                line["failed"] = trace
            self.write(json.dumps(line))
