"""What went wrong, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from foreword.errors import ForewordError
from foreword.serving.store import UnknownPrompt
from foreword.serving.work import Busy

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 409: "conflict_error", 413: "invalid_request_error",
    429: "rate_limit_error", 503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip


class Refused(Exception):  # noqa: N818 - an answer
    """Ends a request with this answer."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(status: int, message: str, code: str, param: str | None = None, retry: float | None = None) -> JSONResponse:
    headers = {} if retry is None else {"Retry-After": str(max(1, math.ceil(retry)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(status, message, code, param), status, headers)


def missing(model: str) -> Refused:
    """The one answer to a name that does not exist and to one that this key may not use."""
    return Refused(404, f"The model {model!r} does not exist, or this key may not use it.", "model_not_found", "model")


def answer(error: BaseException) -> JSONResponse:
    """Any failure as an answer; of an unexpected one nothing is told."""
    if isinstance(error, Refused):
        return refusal(error.status, error.message, error.code, error.param)
    if isinstance(error, Busy):
        return refusal(429, str(error), "busy", retry=error.retry_after)
    if isinstance(error, UnknownPrompt):
        return refusal(404, str(error), "not_found")
    if isinstance(error, TimeoutError):
        return refusal(504, "The answer took longer than is allowed; ask for less, or again later.", "timeout")
    if isinstance(error, ForewordError):
        return refusal(400, str(error), "refused")
    return refusal(500, "The server failed; its log has the reason under this request's id.", "internal")


def install(app: FastAPI) -> None:
    """Every way a route can fail, to that shape."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        return answer(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, int)) or None
        # Pydantic's own sentences may quote what was given, which answers and logs must not carry further.
        return refusal(400, f"{where or 'The body'}: {first['msg']}.", "invalid", where)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        found = refusal(error.status_code, str(error.detail), TYPES.get(error.status_code, "failed"))
        for name, value in (error.headers or {}).items():
            found.headers[name] = value
        return found

    app.add_exception_handler(Refused, told)
    app.add_exception_handler(ForewordError, told)
    app.add_exception_handler(TimeoutError, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, told)
