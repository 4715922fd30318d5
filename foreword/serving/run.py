"""Run the server as a process: it listens, reports its address, and ends what it accepted before it exits.

Heads are read by h11, which is bounded, whatever HTTP parser is installed; httptools is not bounded.
"""

import asyncio
import json
import math
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from foreword.errors import ConfigError
from foreword.serving.app import Server, make_app
from foreword.serving.app.auth import is_loopback
from foreword.serving.connections import BACKLOG, Connections, room_for
from foreword.serving.keys import KeyRing

HEAD = 2**14  # bytes of a request's line and headers
PART = 2**12  # bytes that are parsed at once, so that a head is never much longer than it may be
STALLED = 30.0  # seconds in which a reader takes nothing
LEFT = 30.0  # seconds that a server whose engine has failed still answers that it has, before the process ends
LOGGED = {
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"events": {"class": "foreword.serving.app.logs.Events"}},
    "loggers": {"uvicorn": {"handlers": ["events"], "level": "WARNING", "propagate": False}},
}  # fmt: skip


class EngineFailed(Exception):  # noqa: N818 - what it is
    """Report that the process ends since its engine has failed, and not by a fault of the user who started it."""


class BoundedConnection(H11Protocol):
    """Bound a connection: it has to bring a whole head within `seconds` of its opening, and of its last answer.

    It is also ended if its client stops to read what it is sent.
    """

    limits: Connections  # of the server; set in a class of its own by `protocol`

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self.timer: asyncio.TimerHandle | None = None
        self.stall: asyncio.TimerHandle | None = None
        self.rest = b""  # what came before the request that is under way was answered
        if not self.limits.enter(self):
            self._refuse(503, "The server has as many connections as it may have; ask again in a moment.", "busy")
        self._arm()

    @property
    def waits(self) -> bool:
        """Return whether no request of the connection is under way."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        data, self.rest = self.rest + data, b""
        for start in range(0, len(data), PART):
            if self.transport.is_closing():
                return
            if not self.waits and self.conn.their_state is h11.DONE and start:
                self.rest = data[start:]  # reading pauses, and the next head is parsed by parts when its turn comes
                break
            super().data_received(data[start : start + PART])
        if not self.waits:
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # a request that had come already is under way now
        if self.rest:
            self.data_received(b"")
        if self.waits:
            self._arm()
            self.limits.waited(self)

    def send_400_response(self, msg: str) -> None:
        if len(self.conn.trailing_data[0]) > HEAD:
            self._refuse(431, f"The request's head has more than the {HEAD:,} bytes allowed.", "too_large")
        else:
            self._refuse(400, "The request is no HTTP/1.1.", "invalid")
        self._arm()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.stall is None:
            self.stall = self.loop.call_later(STALLED, self.end)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unstall()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._unstall()
        self.limits.leave(self)
        super().connection_lost(exc)

    def end(self) -> None:
        """Close the connection now, whatever has not been sent: a close that waits for its reader may wait for ever."""
        if self.transport.get_write_buffer_size() or self.transport.is_closing():
            self.transport.abort()
        else:
            self.transport.close()

    def _arm(self) -> None:
        self._disarm()
        self.timer = self.loop.call_later(self.limits.seconds, self.end)

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _unstall(self) -> None:
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None

    def _refuse(self, status: int, words: str, code: str) -> None:
        """Answer bytes that never become a request, in the shape of every other failure, and close."""
        kind = "unavailable_error" if status == 503 else "invalid_request_error"
        body = json.dumps({"error": {"message": words, "type": kind, "param": None, "code": code}}).encode()
        if self.conn.our_state is h11.IDLE or self.conn.our_state is h11.SEND_RESPONSE:
            head = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=status, headers=head), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def protocol(most: int, seconds: float) -> type[BoundedConnection]:
    """Return the class of one server's connections: at most `most`, each with `seconds` to bring a head."""
    return type("BoundedConnection", (BoundedConnection,), {"limits": Connections(most, seconds)})


class _Stopping(uvicorn.Server):
    """Turn new requests away and end the others on the first signal; exit at once on the second."""

    def __init__(self, config: uvicorn.Config, server: Server, ready: Callable[[str], None]):
        super().__init__(config)
        self.front, self.told = server, ready
        self.failed: float | None = None  # since when the engine has

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.told(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        if self.front.engine.failure is not None:
            self.failed = self.failed or time.monotonic()
            if time.monotonic() - self.failed > LEFT:
                return True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.front.draining = True
        super().handle_exit(sig, frame)


def require_loopback(host: str, keys: KeyRing) -> None:
    """Check that a server without keys listens on loopback alone. Raises: ConfigError if others could reach it."""
    if keys.empty and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines in, and there are no keys: whoever comes could use and change every "
            "prompt. Make one with `foreword keys add`, or listen on 127.0.0.1."
        )


def run(server: Server, host: str, port: int, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then end what was accepted, for as long as an answer may take.

    Raises: ConfigError as `require_loopback` does, and if the address is taken; EngineFailed if the engine failed,
    after probes and clients have been answered so for a while.
    """
    require_loopback(host, server.keys)
    seconds, idle = server.limits.seconds, server.limits.idle
    connections = room_for(server.limits.connections)
    config = uvicorn.Config(
        make_app(server), host=host, port=port, log_config=LOGGED, access_log=False, server_header=False,
        timeout_graceful_shutdown=int(seconds) + 1, lifespan="on", ws="none",
        http=protocol(connections, idle), timeout_keep_alive=math.ceil(idle), backlog=BACKLOG,
    )  # fmt: skip
    own = _Stopping(config, server, ready)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # uvicorn raises the signal again once it has ended; this process then goes on to close its engine.
    for number in before:
        signal.signal(number, lambda *_: None)
    try:
        own.run()
    except SystemExit as error:
        raise ConfigError(f"The server cannot listen on {host}:{port}; is the port taken?") from error
    finally:
        server.engine.close(finish=not own.force_exit, seconds=seconds)
        for number, handler in before.items():
            signal.signal(number, handler)
    if server.engine.failure is not None:
        raise EngineFailed(server.engine.failure)
