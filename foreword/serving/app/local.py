"""Without keys whoever reaches the server may do everything, so only this machine's own programs may reach it."""

from urllib.parse import urlsplit

from foreword.serving.app.failures import refusal
from foreword.serving.app.limits import App, Receive, Scope, Send
from foreword.serving.app.server import Server

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    return host.strip("[]").lower() in LOOPBACK


class Local:
    """Refuses names that only point at this machine, and pages of other origins that a browser here has open.

    Both hold with keys too, as far as they can: another origin's page never has the key, but need not be served.
    """

    def __init__(self, app: App, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.server.keys.empty:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            host = headers.get(b"host", "")
            origin = headers.get(b"origin")
            if not is_loopback(urlsplit(f"//{host}").hostname or ""):
                words = "Without keys the server answers to 127.0.0.1 and localhost alone; see `foreword keys add`."
                await refusal(403, words, "wrong_host")(scope, receive, send)
                return
            if origin is not None and urlsplit(origin).netloc != host:
                words = "Without keys, pages of other origins are not served; see `foreword keys add`."
                await refusal(403, words, "wrong_origin")(scope, receive, send)
                return
        await self.app(scope, receive, send)
