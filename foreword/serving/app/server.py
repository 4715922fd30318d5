"""What the routes share: the engine, the prompts, the keys and the limits, and who may use what."""

import random
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from foreword.errors import ConfigError
from foreword.serving.app.failures import missing
from foreword.serving.app.limits import Limits
from foreword.serving.app.metrics import Metrics
from foreword.serving.keys import Key, KeyRing
from foreword.serving.names import parse
from foreword.serving.store import PromptStore, UnknownPrompt, Version
from foreword.serving.work import Works


@dataclass(eq=False)
class Server:
    """One engine's front. `active` counts requests under way, `uploading` those that bring a prompt.

    `draining` turns new ones away. `replica` is told in every answer where it is set. `draws` decides which requests
    fall in a share.
    """

    engine: Works
    store: PromptStore
    keys: KeyRing
    limits: Limits = field(default_factory=Limits)
    ready: bool = True
    draining: bool = False
    active: int = 0
    uploading: int = 0
    replica: str | None = None
    metrics: Metrics = field(init=False)
    draws: random.Random = field(default_factory=random.Random, init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine, self.replica)

    def version(self, key: Key, model: str) -> Version | None:
        """The prompt that a request names; None for the model alone.

        A name that the key may not use is refused before anybody looks whether it is there.
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
    """Who asks."""
    key = request.scope["key"]
    assert isinstance(key, Key), "routes that are open to all ask for no key"
    return key


def told(request: Request) -> dict[str, Any]:
    """What the log is to say of this request besides its route and status; never a text."""
    return request.scope["told"]
