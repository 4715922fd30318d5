"""What every route under /v1 says of itself in the OpenAPI document: its key, and how it refuses."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer

from foreword.serving.app.schemas import Failure

AGAIN: dict[str, Any] = {"headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}}
MEANINGS = {
    400: "What was asked cannot be done as it was asked",
    401: "A key is needed",
    403: "This key, host or origin may not do this",
    404: "There is no such prompt, or this key may not use it",
    408: "The body did not arrive in time",
    409: "It does not go together with what there is",
    413: "The body or the text is too large",
    429: "Too much is asked at once; again after Retry-After",
    500: "The server failed, or a prompt that it serves is damaged",
    503: "The server stops; again after Retry-After",
    504: "The answer took longer than is allowed",
}
FAILURES: dict[int | str, dict[str, Any]] = {
    **{
        status: {"model": Failure, "description": words, **(AGAIN if status in (429, 503) else {})}
        for status, words in MEANINGS.items()
    },
    "4XX": {"model": Failure, "description": "Any other refusal"},  # and not 422, which FastAPI would add
}
BEARER = HTTPBearer(
    auto_error=False, description="From `foreword keys add`; a server that has none is open to its own machine."
)


def guarded() -> APIRouter:
    """A router for what needs a key; the check itself is before all routes, in access.py."""
    return APIRouter(responses=FAILURES, dependencies=[Depends(BEARER)])
