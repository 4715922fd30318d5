"""The server as a process: it listens, says so, and ends what it accepted before it goes."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from foreword.errors import ConfigError
from foreword.serving.app import Server, make_app
from foreword.serving.app.access import is_loopback
from foreword.serving.keys import KeyRing

LOGGED = {
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"events": {"class": "foreword.serving.app.logs.Events"}},
    "loggers": {"uvicorn": {"handlers": ["events"], "level": "WARNING", "propagate": False}},
}  # fmt: skip


class _Stopping(uvicorn.Server):
    """On the first signal new requests are turned away and the others ended; on the second it goes at once."""

    def __init__(self, config: uvicorn.Config, server: Server, ready: Callable[[str], None]):
        super().__init__(config)
        self.front, self.told = server, ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.told(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.front.draining = True
        super().handle_exit(sig, frame)


def require_loopback(host: str, keys: KeyRing) -> None:
    """Raises: ConfigError where others could reach a server that has no keys."""
    if keys.empty and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines in, and there are no keys: whoever comes could use and change every "
            "prompt. Make one with `foreword keys add`, or listen on 127.0.0.1."
        )


def run(server: Server, host: str, port: int, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then end what was accepted, for as long as an answer may take.

    Raises: ConfigError as `require_loopback` says, and where the address is taken.
    """
    require_loopback(host, server.keys)
    seconds = server.limits.seconds
    config = uvicorn.Config(
        make_app(server), host=host, port=port, log_config=LOGGED, access_log=False, server_header=False,
        timeout_graceful_shutdown=int(seconds) + 1, lifespan="on", ws="none",
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
