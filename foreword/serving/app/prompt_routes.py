"""Serve /v1/prompts: list, add, replace, roll back and remove prompts."""

import contextlib
from typing import Annotated

from anyio import to_thread
from fastapi import Path as InPath
from fastapi import Query, Request, Response
from pydantic import BeforeValidator

from foreword.core.artefact import Artefact
from foreword.errors import ArtefactError, ConfigError
from foreword.serving.app.error_responses import Refused, missing
from foreword.serving.app.schemas import (
    Added,
    PromptCard,
    PromptLine,
    PromptList,
    RollbackRequest,
    Share,
    ShareRequest,
    VersionCard,
    VersionRequest,
    guarded,
)
from foreword.serving.app.server import Server, key_of, server_of, told
from foreword.serving.archive import read_upload
from foreword.serving.keys import Key
from foreword.serving.names import check_alias, check_name, version_number
from foreword.serving.store import OverQuota, Served, UnknownPrompt, Version

router = guarded()
Name = Annotated[str, InPath(description="The prompt's name.", examples=["acme-reviews"])]
Alias = Annotated[str, InPath(description="Another word for a version.", examples=["beta"])]
Number = Annotated[
    int, InPath(ge=1, le=10**9, description="The version's number.", examples=[2]), BeforeValidator(version_number)
]
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


@router.get("/v1/prompts")
async def prompts(
    request: Request,
    after: Annotated[str, Query(max_length=128, description="Names after this one.")] = "",
    limit: Annotated[int, Query(ge=1, le=PAGE, description="Names in one page.")] = 100,
    search: Annotated[str, Query(max_length=128, description="Names that contain this.")] = "",
) -> PromptList:
    """List the names that this key may use or change, in order, a page at a time."""
    return await to_thread.run_sync(_listed, server_of(request), key_of(request), after, limit, search)


@router.get("/v1/prompts/{name}")
async def prompt(name: Name, request: Request) -> PromptCard:
    """Return a prompt's versions, and how its current one puts a row to the model."""
    key = key_of(request)
    served = _served(server_of(request), name, key.may_infer(name) or key.may_administer(name))
    try:
        artefact = await to_thread.run_sync(Artefact.load, served.current.folder)
    except ArtefactError:  # its words name the folder
        raise Refused(500, f"{served.current.id} is damaged; add it again, or go back to another.", "failed") from None
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
    """Add a prompt, or a new version of one, which is current at once; requests under way keep their version.

    Whether this key may add it is decided by the name alone, before the body is read.
    """
    server = server_of(request)
    try:
        check_name(name)
    except ConfigError as error:
        raise Refused(400, str(error), "invalid", "name") from None
    if not key_of(request).may_administer(name):
        raise Refused(403, "This key may not add or change a prompt of that name.", "forbidden")
    if name == server.engine.model:
        raise Refused(409, f"{name!r} is the model's own name; choose another.", "conflict")
    _check_writable(server)
    data = await request.body()
    if not data:
        raise Refused(400, "The body is empty; send an artefact's folder as a tar, tar.gz or zip file.", "invalid")
    request.scope["place"].uploads()
    version = await to_thread.run_sync(_stored, server, name, data, key_of(request))
    return _added(request, version)


@router.delete("/v1/prompts/{name}", status_code=204)
async def remove(name: Name, request: Request) -> Response:
    """Remove a prompt with all its versions; requests under way are still answered with it."""
    server = await _changed(request, name)
    await to_thread.run_sync(server.store.remove, name)
    return Response(status_code=204)


@router.delete("/v1/prompts/{name}/versions/{number}", status_code=204)
async def remove_version(name: Name, number: Number, request: Request) -> Response:
    """Remove one version that is not the current one and that no alias or share points to."""
    server = await _changed(request, name)
    await to_thread.run_sync(server.store.remove, name, number)
    return Response(status_code=204)


@router.post("/v1/prompts/{name}/rollback")
async def roll_back(name: Name, request: Request, given: RollbackRequest | None = None) -> Added:
    """Make an earlier version current again: the one before by default."""
    server = await _changed(request, name)
    return _added(request, await to_thread.run_sync(server.store.roll_back, name, given.to if given else None))


@router.put("/v1/prompts/{name}/aliases/{alias}", status_code=204)
async def alias(name: Name, alias: Alias, given: VersionRequest, request: Request) -> Response:
    """Let `name@alias` mean a version."""
    server = await _changed(request, name)
    await to_thread.run_sync(server.store.alias, name, check_alias(alias), given.version)
    return Response(status_code=204)


@router.delete("/v1/prompts/{name}/aliases/{alias}", status_code=204)
async def no_alias(name: Name, alias: Alias, request: Request) -> Response:
    """Take an alias away."""
    server = await _changed(request, name)
    await to_thread.run_sync(server.store.alias, name, check_alias(alias), None)
    return Response(status_code=204)


@router.put("/v1/prompts/{name}/share", status_code=204)
async def share(name: Name, given: ShareRequest, request: Request) -> Response:
    """Send a fraction of the requests that name no version to another one."""
    server = await _changed(request, name)
    await to_thread.run_sync(server.store.share, name, given.version, given.fraction)
    return Response(status_code=204)


@router.delete("/v1/prompts/{name}/share", status_code=204)
async def no_share(name: Name, request: Request) -> Response:
    """Send all requests that name no version to the current version again."""
    server = await _changed(request, name)
    await to_thread.run_sync(server.store.share, name, None)
    return Response(status_code=204)


def _listed(server: Server, key: Key, after: str, limit: int, search: str) -> PromptList:
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
    alone = server.engine.model
    return PromptList(
        data=lines, next=own[limit - 1] if len(own) > limit else None, model=alone if key.may_infer(alone) else None,
        continues=server.engine.continues, may_add=bool(key.administer),
        damaged=[n for n in server.store.damaged if search in n and (key.may_infer(n) or key.may_administer(n))],
    )  # fmt: skip


def _stored(server: Server, name: str, data: bytes, key: Key) -> Version:
    """Check an upload in every way before anything is stored, then store it and return its version. Raises: Refused."""
    try:
        contents, artefact = read_upload(data, limit=server.limits.upload)
        server.engine.check(artefact)
    except ArtefactError as error:  # here it is the request's fault
        raise Refused(400, str(error), "refused") from None
    names = server.store.names()
    if len(names) >= server.limits.prompts and name not in names:
        raise Refused(409, f"The server has the {server.limits.prompts:,} prompts that it may have.", "full")
    try:
        return server.store.add(name, contents, by=server.client(key).id, quota=server.quota(key))
    except OverQuota as error:
        raise Refused(409, str(error), "full") from None


def _check_writable(server: Server) -> None:
    if server.store.read_only:
        words = "The folder of this server is read-only: its prompts can be used, and none can be added or changed."
        raise Refused(403, words, "read_only")


def _added(request: Request, version: Version) -> Added:
    told(request)["prompt"] = version.id
    return Added(name=version.name, version=version.number, id=version.id, sha256=version.sha256)


def _served(server: Server, name: str, allowed: bool) -> Served:
    """Return a prompt with its versions; a name that the key may not use is refused before it is looked up."""
    try:
        if allowed:
            return server.store.served(name)
    except UnknownPrompt:
        pass
    raise missing(name)


async def _changed(request: Request, name: str) -> Server:
    """Return the server if the prompt exists and this key may change it. Raises: Refused, the same for a prompt that
    does not exist and one that this key may not change."""
    server = server_of(request)
    with contextlib.suppress(ConfigError):  # another name's damage; who opens or watches is told
        await to_thread.run_sync(server.store.refresh)  # another replica may have added it just now
    _served(server, name, key_of(request).may_administer(name))
    _check_writable(server)
    told(request)["prompt"] = name
    return server
