"""A server with a real engine on a loopback port, for clients that speak HTTP."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from foreword.models.base import FrozenLM
from foreword.models.load import load
from foreword.serving.app import Limits, Server, make_app
from foreword.serving.engine import Engine, Room
from foreword.serving.keys import KeyRing
from foreword.serving.store import PromptStore
from tests.serving.made import artefact

ROOM = Room(memory=2**22, compiled=2**22, cache=2**24, rows=4, waiting=200)
NAMES = {"acme-reviews": "ahead", "acme-words": "hard", "beta": "prefix", "two": "behind"}


def filled(root: Path, lm: FrozenLM, **more: object) -> Path:
    """A folder of artefacts as training writes it."""
    for seed, (name, form) in enumerate(NAMES.items()):
        artefact(lm, form, seed=seed, **more).save(root / "artefacts" / name)
    return root


@contextlib.contextmanager
def server(root: Path, lm: FrozenLM | None = None, limits: Limits | None = None, room: Room = ROOM) -> Iterator[Server]:
    lm = lm or load("foreword-tiny-causal")
    with Engine(lm, room) as engine:
        yield Server(engine, PromptStore.open(root), KeyRing.open(root), limits or Limits())


class Lines(list[str]):
    """What the log wrote."""

    def told(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self]


@contextlib.contextmanager
def listening(own: Server, lines: Lines | None = None, **more: Any) -> Iterator[str]:
    """The address of the server; it listens on a thread of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write = (lines if lines is not None else Lines()).append
    config = uvicorn.Config(make_app(own, write), host="127.0.0.1", port=port, log_config=None, lifespan="on", **more)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not running.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def client(own: Server, lines: Lines | None = None, token: str | None = None) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with listening(own, lines) as address, httpx.Client(base_url=address, timeout=60, headers=headers) as made:
        yield made


__all__ = ["NAMES", "ROOM", "Limits", "Lines", "client", "filled", "listening", "replace", "server"]
