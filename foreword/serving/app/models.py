"""Serve /v1/models: the names that a request may use, in OpenAI's form."""

import calendar
import time
from typing import Annotated

from anyio import to_thread
from fastapi import Path as InPath
from fastapi import Request

from foreword.serving.app.error_responses import missing
from foreword.serving.app.schemas import PROMPT, ModelCard, ModelList, guarded
from foreword.serving.app.server import Server, key_of, server_of
from foreword.serving.keys import Key
from foreword.serving.store import UnknownPrompt

router = guarded()
Name = Annotated[str, InPath(description=PROMPT, examples=["acme-reviews@2"])]


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """List every name that this key may use: prompts, and the model alone."""
    return await to_thread.run_sync(_listed, server_of(request), key_of(request))


@router.get("/v1/models/{model:path}")
async def model(model: Name, request: Request) -> ModelCard:
    """Return one of the names that this key may use."""
    server = server_of(request)
    version = server.version(key_of(request), model)
    if version is None:
        return ModelCard(id=model, created=0)
    try:
        return _card(server, version.name, model)
    except UnknownPrompt:  # removed meanwhile
        raise missing(model) from None


def _listed(server: Server, key: Key) -> ModelList:
    cards = []
    for name in server.store.names():
        if key.may_infer(name):
            try:
                cards.append(_card(server, name, name))
            except UnknownPrompt:
                continue
    alone = server.engine.model
    if key.may_infer(alone) and alone not in {card.id for card in cards}:
        cards.append(ModelCard(id=alone, created=0))
    return ModelList(data=cards)


def _card(server: Server, name: str, shown: str) -> ModelCard:
    served = server.store.served(name)
    added = served.added[served.current.number]
    return ModelCard(id=shown, created=calendar.timegm(time.strptime(added, "%Y-%m-%dT%H:%M:%SZ")))
