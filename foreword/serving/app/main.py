"""Build the application: the routes, and around them the layers that every request passes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import foreword
from foreword.serving.app import classify, completions, error_responses, health, logs, models, prompt_routes
from foreword.serving.app.auth import Access
from foreword.serving.app.limits import BodyLimit, Gate
from foreword.serving.app.server import Server

ABOUT = """Learnt prompts over one frozen model: `model` is a prompt's name, `name@3` a version, `name@alias` an alias.

`/v1/completions`, `/v1/chat/completions` and `/v1/models` are OpenAI's; any client of theirs works. A server that has
keys asks for one as `Authorization: Bearer KEY`; a name that a key may not use is answered as one that is not there."""


def make_app(server: Server, write: logs.Write = logs.to_stderr) -> FastAPI:
    """Return the server's routes behind its limits. The caller closes the engine."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with server.store.watch(warn=lambda line: write(logs.event(level="warning", message=line))):
            yield

    app = FastAPI(
        title="Foreword", version=foreword.__version__, description=ABOUT, lifespan=life, docs_url=None, redoc_url=None,
        swagger_ui_oauth2_redirect_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.server = server
    error_responses.install(app)
    parts = (completions, classify, models, prompt_routes, health)
    for part in parts:
        app.include_router(part.router)
    app.state.routes = [route for part in parts for route in part.router.routes]
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limits=server.limits)
    app.add_middleware(Gate, server=server)
    app.add_middleware(Access, server=server)
    app.add_middleware(logs.Log, server=server, write=write)
    return app
