"""Check who may make a request: with keys, any holder of one; without, programs on this machine alone, since they may
do everything."""

import re
from urllib.parse import urlsplit

from foreword.errors import ConfigError
from foreword.serving.app.error_responses import Refused, answer
from foreword.serving.app.limits import App, Receive, Scope, Send
from foreword.serving.app.server import Server
from foreword.serving.keys import EVERYONE, Key

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
OPEN = ("/", "/health", "/ready", "/openapi.json")  # and the page's files


def is_loopback(host: str) -> bool:
    return host.strip("[]").lower() in LOOPBACK


class Access:
    """Find the key of each request before its body is read, and note it in the scope.

    Without keys, refuse host names other than this machine's own, even if they point at this machine, and pages of
    other origins that a browser on this machine has open: a page that a user visits is not a program of that user.
    """

    def __init__(self, app: App, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope["key"] = self._key(scope)
            except Refused as refused:
                await answer(refused)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _key(self, scope: Scope) -> Key | None:
        """Return the request's key: `EVERYONE` if the server has no keys, None for a path that needs no key."""
        try:
            if self.server.keys.empty:
                _check_local(scope)
                return EVERYONE
            if scope["path"] in OPEN or scope["path"].startswith("/page/"):
                return None
            scheme, _, token = _header(scope, b"authorization").partition(" ")
            key = self.server.keys.find(token.strip() if scheme.lower() == "bearer" else None)
        except ConfigError:  # its words name the file
            words = "The server cannot read its keys and lets nobody in until they are mended."
            raise Refused(503, words, "keys_damaged", retry=60.0) from None
        if key is None:
            raise Refused(401, "A valid key is needed: send it as `Authorization: Bearer KEY`.", "invalid_api_key")
        scope["told"]["key"] = key.id
        return key


def _check_local(scope: Scope) -> None:
    host, origin = _header(scope, b"host"), _header(scope, b"origin")
    if not HOST.fullmatch(host):
        words = "Without keys the server answers to 127.0.0.1 and localhost alone; see `foreword keys add`."
        raise Refused(403, words, "wrong_host")
    try:
        own = not origin or urlsplit(origin).netloc == host
    except ValueError:
        own = False
    if not own:
        raise Refused(
            403, "Without keys, pages of other origins are not served; see `foreword keys add`.", "wrong_origin"
        )


def _header(scope: Scope, name: bytes) -> str:
    """Return a header's value; if it was sent several times, all values joined, which no check accepts."""
    return ", ".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)
