"""Hold what the routes share: the engine, the prompts, the keys and the limits; decide which key may use which
prompt."""

import random
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread
from fastapi import Request

from foreword.errors import ConfigError
from foreword.serving.app.error_responses import Refused, missing
from foreword.serving.app.limits import Limits, Places, RequestPlace
from foreword.serving.app.prometheus import Metrics
from foreword.serving.keys import EVERYONE, Key, KeyRing
from foreword.serving.names import parse
from foreword.serving.protocol import Client, Works
from foreword.serving.quota import Quota
from foreword.serving.store import PromptStore, UnknownPrompt, Version

INFERENCE = ("/v1/classify", "/v1/completions", "/v1/chat/completions")
REMEMBERED = 1000  # sets of patterns


@dataclass(eq=False)
class Server:
    """Hold one engine with its prompts, keys and limits. `places` counts what is under way, for each key and in all.

    `draining` turns new requests away. `replica` is sent in a header of every answer if it is set. `draws` decides
    which requests fall in a share.
    """

    engine: Works
    store: PromptStore
    keys: KeyRing
    limits: Limits = field(default_factory=Limits)
    ready: bool = True
    draining: bool = False
    replica: str | None = None
    metrics: Metrics = field(init=False)
    places: Places = field(init=False)
    draws: random.Random = field(default_factory=random.Random, init=False)
    _usable: dict[tuple[str, ...], tuple[int, str | None]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine, self.replica)
        self.places = Places(self.limits)

    @property
    def active(self) -> int:
        """Return the number of requests under way."""
        return self.places.active

    def quota(self, key: Key) -> Quota:
        """Return the limits of a key: its own, and for the others those of every key. Without keys there are none."""
        return Quota() if key is EVERYONE else key.quota.before(self.limits.key)

    def client(self, key: Key) -> Client:
        """Return the client that the engine works for: the key's id, empty without keys, and how many of its rows may
        wait."""
        return Client("" if key is EVERYONE else key.id, self.quota(key).rows)

    def place(self, key: Key) -> RequestPlace:
        return RequestPlace(self.places, self.client(key).id, self.quota(key))

    async def admit(self, key: Key, method: str, path: str) -> None:
        """Check that the key may make this request, whatever its body is. Raises: Refused if it may not."""
        parts = path.split("/")
        if path in INFERENCE and not await to_thread.run_sync(self._may_use_any, key):
            raise Refused(404, "No prompt that this key may use is there.", "model_not_found", "model")
        # A prompt that is added or replaced is for its route to refuse, which does so before its body is read.
        if parts[1:3] == ["v1", "prompts"] and len(parts) > 4 and not key.may_administer(parts[3]):
            raise missing(parts[3])

    def _may_use_any(self, key: Key) -> bool:
        """Return whether the key may use the model alone, or any prompt in the store; names are read once for each
        change."""
        if key.may_infer(self.engine.model):
            return True
        changes = self.store.changes
        then, name = self._usable.get(key.infer, (-1, None))
        if then == changes or (name is not None and self.store.has(name)):
            return name is not None
        name = next((name for name in self.store.names() if key.may_infer(name)), None)
        if len(self._usable) >= REMEMBERED:
            self._usable.clear()
        self._usable[key.infer] = changes, name
        return name is not None

    def version(self, key: Key, model: str) -> Version | None:
        """Return the version of a prompt that a request names; None for the model alone.

        A name that the key may not use is refused before it is looked up.

        Raises: Refused (404), the same for every reason.
        """
        try:
            name, _ = (model, None) if model == self.engine.model else parse(model)
        except ConfigError:
            raise missing(model) from None
        if not key.may_infer(name):
            raise missing(model)
        try:
            return self.store.resolve(model, self.draws.random())
        except (UnknownPrompt, ConfigError):
            if model == self.engine.model:
                return None
            raise missing(model) from None


def server_of(request: Request) -> Server:
    return request.app.state.server


def key_of(request: Request) -> Key:
    """Return the key that the request was made with."""
    key = request.scope["key"]
    assert isinstance(key, Key), "routes that are open to all ask for no key"
    return key


def told(request: Request) -> dict[str, Any]:
    """Return what the log is to say of this request besides its route and status, to be added to; never a text."""
    return request.scope["told"]
