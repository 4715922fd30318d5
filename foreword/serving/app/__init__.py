"""Serve the engine over HTTP: routes, validation, keys and limits. No tensors here."""

from foreword.serving.app.limits import Limits
from foreword.serving.app.main import make_app
from foreword.serving.app.server import Server

__all__ = ["Limits", "Server", "make_app"]
