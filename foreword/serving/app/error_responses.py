"""Answer every failure in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from foreword.errors import ArtefactError, ForewordError, ModelError
from foreword.serving.protocol import Busy, Stopped
from foreword.serving.store import UnknownPrompt

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 409: "conflict_error", 413: "invalid_request_error",
    429: "rate_limit_error", 499: "timeout_error", 503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip
LONGEST, PLACE = 2_000, 200  # characters of a message, and of the place that it names: both may quote the request
FIRST = 50  # errors looked at; schemas.py sees to it that there are few
WORDS = {  # of pydantic's sentences, those that say too little here
    "extra_forbidden": "there is no such option",
    "json_invalid": "the body is not JSON",
    "missing": "this is needed",
    "model_attributes_type": "a JSON object is needed, sent with `Content-Type: application/json`",
}


class Refused(HTTPException):
    """End a request with this answer. `retry` is in seconds from now.

    It is an HTTPException, since FastAPI replaces every other exception that is raised while a body is read.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None, retry: float | None = None):
        super().__init__(status, message)
        self.message, self.code, self.param, self.retry = message, code, param, retry


class Gone(Exception):  # noqa: N818 - what it is
    """Signal that the client has disconnected and nobody reads the answer."""


def body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error")
    return {"error": {"message": _short(message, LONGEST), "type": kind, "param": param, "code": code}}


def _short(text: str, most: int) -> str:
    """Return the text cut to `most` characters; half of a character (a lone surrogate) is shown as its number."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 30]} ... {text[-20:]}"


def refusal(status: int, message: str, code: str, param: str | None = None, retry: float | None = None) -> JSONResponse:
    headers = {} if retry is None else {"Retry-After": str(max(1, math.ceil(retry)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(status, message, code, param), status, headers)


def missing(model: str) -> Refused:
    """Return the one refusal (404) of a name that does not exist and of a name that this key may not use."""
    return Refused(404, f"The model {model!r} does not exist, or this key may not use it.", "model_not_found", "model")


def answer(error: BaseException) -> JSONResponse:
    """Return the answer to any failure; the answer to an unexpected one shows no detail of it."""
    if isinstance(error, Refused):
        return refusal(error.status_code, error.message, error.code, error.param, error.retry)
    if isinstance(error, Stopped):
        return refusal(503, str(error), "stopped", retry=error.retry_after)
    if isinstance(error, Busy):
        return refusal(429, str(error), "busy", retry=error.retry_after)
    if isinstance(error, UnknownPrompt):
        return refusal(404, str(error), "not_found")
    if isinstance(error, Gone):
        return refusal(499, "Whoever asked has gone.", "gone")
    if isinstance(error, TimeoutError):
        return refusal(504, "The answer took longer than is allowed; ask for less, or again later.", "timeout")
    if isinstance(error, (ArtefactError, ModelError)):  # a prompt that is served, or the model: no fault of the request
        return refusal(500, str(error), "failed")
    if isinstance(error, ForewordError):
        return refusal(400, str(error), "refused")
    return refusal(500, "The server failed; its log has the reason under this request's id.", "internal")


def install(app: FastAPI) -> None:
    """Register handlers that answer every failure of a route in OpenAI's shape."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        result = answer(error)
        if result.status_code >= 500:
            request.scope["told"]["failed"] = type(error).__name__
        return result

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        where, kind, words = _deepest(error)
        # Pydantic's errors have what was given in them; its words and ours do not repeat it.
        return refusal(400, f"{where or 'The request'}: {WORDS.get(kind, words).rstrip('.')}.", "invalid", where)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        words = {
            400: "The body cannot be read as JSON: it is nested too deeply, or has a number of too many digits",
            404: "There is no such route",
            405: "This route has no such method",
        }
        message = words.get(error.status_code, str(error.detail))
        result = refusal(error.status_code, f"{message}.", TYPES.get(error.status_code, "failed"))
        for name, value in (error.headers or {}).items():
            result.headers[name] = value
        methods = _methods(request) if error.status_code == 405 else []
        if methods:
            result.headers["Allow"] = ", ".join(methods)
        return result

    for kind in (Refused, Gone, ForewordError, TimeoutError):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _methods(request: Request) -> list[str]:
    """Return all methods of a path; the route that raises a 405 names only the methods of that route."""
    routes = (route for route in request.app.state.routes if route.path_regex.fullmatch(request.scope["path"]))
    return sorted({method for route in routes for method in route.methods})


def _deepest(error: RequestValidationError) -> tuple[str | None, str, str]:
    """Return where the request is wrong, the type of pydantic's error and its message; of several errors, the deepest.

    An option that takes a text or a list of texts gives an error for each of the two; the deepest belongs to the one
    that was meant.
    """
    errors = error.errors()[:FIRST]
    found = [(_place(one["loc"], one["type"], error.body), one["type"], one["msg"]) for one in errors]
    (where, kind, words) = max(found, key=lambda one: len(one[0]))
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)[1:]
    return _short(place, PLACE) or None, kind, words.removeprefix("Value error, ")


def _place(loc: Sequence[int | str], kind: str, body: Any) -> list[int | str]:
    """Return the keys and positions within the body, without the names of types that pydantic puts between them."""
    if loc[0] != "body":
        return list(loc[1:])
    results: list[int | str] = []
    for part in loc[1:]:
        if isinstance(body, dict) and (part in body or kind == "missing"):
            results.append(part)
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            results.append(part)
            body = body[part]
    return results
