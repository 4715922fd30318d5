"""/v1/prompts: what there is, adding, replacing, going back and removing; /v1/models: the same names for clients."""

import calendar
import time
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath

from foreword.core.artefact import Artefact
from foreword.errors import ConfigError
from foreword.serving.app.failures import Refused, missing
from foreword.serving.app.generation import FAILURES
from foreword.serving.app.schemas import (
    Added,
    ModelCard,
    ModelList,
    PromptCard,
    PromptLine,
    PromptList,
    RollbackRequest,
    Share,
    ShareRequest,
    VersionCard,
    VersionRequest,
)
from foreword.serving.app.server import Server, server_of, told
from foreword.serving.archive import read_upload
from foreword.serving.keys import Key
from foreword.serving.names import check_alias, check_name
from foreword.serving.store import Served, UnknownPrompt, Version

router = APIRouter(responses=FAILURES)
Name = Annotated[str, InPath(description="The prompt's name.")]
Number = Annotated[int, InPath(ge=1, le=10**9)]
PAGE = 1000
ARCHIVE = {
    "requestBody": {
        "required": True,
        "description": "The folder of an artefact as one tar, tar.gz or zip file.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/gzip", "application/x-tar", "application/zip", "application/octet-stream")
        },
    }
}


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """Every name that this key may use: prompts, and the model alone."""
    server = server_of(request)
    key = server.caller(request)
    cards = [_model(server, name) for name in server.store.names() if key.may_infer(name)]
    if key.may_infer(server.engine.model) and server.engine.model not in {card.id for card in cards}:
        cards.append(ModelCard(id=server.engine.model, created=0))
    return ModelList(data=cards)


@router.get("/v1/models/{model:path}")
async def model(model: str, request: Request) -> ModelCard:
    """One of them."""
    server = server_of(request)
    version = server.version(server.caller(request), model)
    if version is None:
        return ModelCard(id=model, created=0)
    return _model(server, version.name, model)


@router.get("/v1/prompts")
async def prompts(
    request: Request,
    after: Annotated[str, Query(max_length=128, description="Names after this one.")] = "",
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
    search: Annotated[str, Query(max_length=128, description="Names that contain this.")] = "",
) -> PromptList:
    """Names that this key may use or change, in order, a page at a time."""
    server = server_of(request)
    key = server.caller(request)
    own = [n for n in server.store.names() if n > after and search in n and (key.may_infer(n) or key.may_administer(n))]
    lines = []
    for name in own[:limit]:
        try:
            served = server.store.served(name)
        except UnknownPrompt:  # removed meanwhile
            continue
        lines.append(
            PromptLine(
                name=name, current=served.current.number, versions=len(served.versions),
                may_infer=key.may_infer(name), may_administer=key.may_administer(name),
            )
        )  # fmt: skip
    return PromptList(data=lines, next=own[limit - 1] if len(own) > limit else None)


@router.get("/v1/prompts/{name}")
async def prompt(name: Name, request: Request) -> PromptCard:
    """A prompt's versions, and how its current one puts a row to the model."""
    server = server_of(request)
    key = server.caller(request)
    served = _served(server, name, key.may_infer(name) or key.may_administer(name))
    artefact = await to_thread.run_sync(Artefact.load, served.current.folder)
    return PromptCard(
        name=name,
        current=served.current.number,
        versions=[
            VersionCard(version=v.number, id=v.id, sha256=v.sha256, added=served.added[v.number])
            for v in served.versions
        ],
        aliases=served.aliases,
        share=None if served.share is None else Share(version=served.share[0], fraction=served.share[1]),
        form=artefact.form,
        method=artefact.method,
        template=artefact.format.template.source,
        labels=[*artefact.format.labels],
        fields=[*artefact.fields],
    )


@router.put("/v1/prompts/{name}", status_code=201, openapi_extra=ARCHIVE)
async def add(name: Name, request: Request) -> Added:
    """Add a prompt, or a new version of one, which is current at once; requests under way keep theirs."""
    server = server_of(request)
    key = server.caller(request)
    if not key.may_administer(_checked(name)):
        raise Refused(403, "This key may not add or change a prompt of that name.", "forbidden")
    if name == server.engine.model:
        raise Refused(409, f"{name!r} is the model's own name; choose another.", "conflict")
    data = await request.body()
    if not data:
        raise Refused(400, "The body is empty; send an artefact's folder as a tar, tar.gz or zip file.", "invalid")

    def put() -> Version:
        contents, artefact = read_upload(data, limit=server.limits.upload)
        server.engine.check(artefact)
        names = server.store.names()
        if len(names) >= server.limits.prompts and name not in names:
            raise Refused(409, f"The server has the {server.limits.prompts} prompts that it may have.", "full")
        return server.store.add(name, contents)

    version = await to_thread.run_sync(put)
    told(request)["prompt"] = version.id
    return Added(name=name, version=version.number, id=version.id, sha256=version.sha256)


@router.delete("/v1/prompts/{name}", status_code=204)
async def remove(name: Name, request: Request) -> Response:
    """Remove a prompt with all its versions; requests under way are still answered with it."""
    server, _ = _changed(request, name)
    await to_thread.run_sync(server.store.remove, name)
    return Response(status_code=204)


@router.delete("/v1/prompts/{name}/versions/{number}", status_code=204)
async def remove_version(name: Name, number: Number, request: Request) -> Response:
    """Remove one version, which is not the current one and which nothing points to."""
    server, _ = _changed(request, name)
    await to_thread.run_sync(server.store.remove, name, number)
    return Response(status_code=204)


@router.post("/v1/prompts/{name}/rollback")
async def roll_back(name: Name, request: Request, given: RollbackRequest | None = None) -> Added:
    """Make an earlier version current again: the one before by default."""
    server, _ = _changed(request, name)
    version = await to_thread.run_sync(server.store.roll_back, name, given.to if given else None)
    told(request)["prompt"] = version.id
    return Added(name=name, version=version.number, id=version.id, sha256=version.sha256)


@router.put("/v1/prompts/{name}/aliases/{alias}", status_code=204)
async def alias(name: Name, alias: str, given: VersionRequest, request: Request) -> Response:
    """Let `name@alias` mean a version."""
    server, _ = _changed(request, name)
    await to_thread.run_sync(server.store.alias, name, check_alias(alias), given.version)
    return Response(status_code=204)


@router.delete("/v1/prompts/{name}/aliases/{alias}", status_code=204)
async def no_alias(name: Name, alias: str, request: Request) -> Response:
    """Take an alias away."""
    server, _ = _changed(request, name)
    await to_thread.run_sync(server.store.alias, name, check_alias(alias), None)
    return Response(status_code=204)


@router.put("/v1/prompts/{name}/share", status_code=204)
async def share(name: Name, given: ShareRequest, request: Request) -> Response:
    """Send a fraction of the requests that name no version to another one."""
    server, _ = _changed(request, name)
    await to_thread.run_sync(server.store.share, name, given.version, given.fraction)
    return Response(status_code=204)


@router.delete("/v1/prompts/{name}/share", status_code=204)
async def no_share(name: Name, request: Request) -> Response:
    """Send all of them to the current version."""
    server, _ = _changed(request, name)
    await to_thread.run_sync(server.store.share, name, None)
    return Response(status_code=204)


def _checked(name: str) -> str:
    try:
        return check_name(name)
    except ConfigError as error:
        raise Refused(400, str(error), "invalid", "name") from None


def _served(server: Server, name: str, allowed: bool) -> Served:
    try:
        if allowed:
            return server.store.served(name)
    except UnknownPrompt:
        pass
    raise missing(name)


def _changed(request: Request, name: str) -> tuple[Server, Key]:
    """Who may change a prompt that there is. Raises: Refused, the same for one that is not there."""
    server = server_of(request)
    key = server.caller(request)
    _served(server, name, key.may_administer(name))
    told(request)["prompt"] = name
    return server, key


def _model(server: Server, name: str, shown: str | None = None) -> ModelCard:
    try:
        served = server.store.served(name)
        added = served.added[served.current.number]
    except UnknownPrompt:  # removed meanwhile
        raise missing(name) from None
    return ModelCard(id=shown or name, created=calendar.timegm(time.strptime(added, "%Y-%m-%dT%H:%M:%SZ")))
