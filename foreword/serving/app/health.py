"""Serve /health, /ready and /metrics to machines, and the page at / to people."""

from pathlib import Path

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse

from foreword.serving.app.error_responses import Refused
from foreword.serving.app.schemas import BEARER, FAILURES, Failure, Health
from foreword.serving.app.server import server_of

router = APIRouter()
PAGE = Path(__file__).parent / "page"
SCRIPTS = ("page.js", "answers.js", "shared.js")
KINDS = {**dict.fromkeys(SCRIPTS, "text/javascript"), "page.css": "text/css", "icon.svg": "image/svg+xml"}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TEXT = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/health",
    response_model_exclude_none=True,
    responses={503: {"model": Failure, "description": "It has failed; start it again"}},
)
async def health(request: Request) -> Health:
    """Return whether the process is alive: not if its engine has failed, or is held for longer than an answer may take.

    A supervisor is to restart a process that is not alive.
    """
    server = server_of(request)
    if server.engine.failure is not None:
        raise Refused(503, server.engine.failure, "engine_failed", retry=30.0)
    held = server.engine.held
    if held > max(server.limits.held, server.limits.seconds):
        raise Refused(503, f"The engine has made no progress for {held:.0f} seconds.", "engine_held", retry=30.0)
    return Health(status="alive")


@router.get(
    "/ready",
    response_model_exclude_none=True,
    responses={503: {"model": Failure, "description": "It starts or stops, or its engine is held"}},
)
async def ready(request: Request) -> Health:
    """Return whether the server takes requests: not while it starts or stops, nor if its engine has failed or makes no
    progress."""
    server = server_of(request)
    if server.engine.failure is not None:
        raise Refused(503, server.engine.failure, "engine_failed", retry=30.0)
    held = server.engine.held
    if held > server.limits.held:
        words = f"The engine has made no progress for {held:.0f} seconds while work waits."
        raise Refused(503, words, "engine_held", retry=5.0)
    if server.draining or not server.ready:
        words = "The server is stopping." if server.draining else "The server is starting."
        raise Refused(503, words, "not_ready", retry=5.0)
    return Health(status="ready", damaged=len(server.store.damaged) or None)


@router.get(
    "/metrics", response_class=Response, dependencies=[Depends(BEARER)],
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **{status: FAILURES[status] for status in (401, 403, 503)},
    },
)  # fmt: skip
async def metrics(request: Request) -> Response:
    """Return counts, times and sizes in Prometheus's form, for any valid key."""
    return Response(server_of(request).metrics.page(), media_type=TEXT)


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(PAGE / "index.html", media_type="text/html", headers=SAFE)


@router.get("/page/{file}", include_in_schema=False)
async def page_file(file: str) -> FileResponse:
    if file not in KINDS:
        raise Refused(404, "There is no such file.", "not_found")
    return FileResponse(PAGE / file, media_type=KINDS[file], headers=SAFE)
