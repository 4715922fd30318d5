"""A stub of an OpenAI-compatible endpoint on 127.0.0.1, for tests: it counts, refuses, delays and answers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]  # status, headers, body


class Stub:
    """`bodies` are the requests heard in order, `answered` those that were answered with a text, `tokens` what those
    cost; `rule(number, body)` decides, None being a text of its own."""

    def __init__(self, rule: Callable[[int, dict], Answer | None] | None = None, words: int = 4):
        self.rule, self.words = rule, words
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[str] = []
        self.tokens = 0
        self.url = ""
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict) -> Answer:
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
        ruled = self.rule(number, body) if self.rule else None
        if ruled is not None:
            return ruled
        prompt = body.get("prompt") or " ".join(m["content"] for m in body["messages"])
        text = f"say which word of {len(prompt)} and {body['seed']} fits"
        used = len(prompt.split()) + min(body["max_tokens"], 3 * self.words)
        with self.lock:
            self.answered.append(json.dumps(body, sort_keys=True))
            self.tokens += used
        choice = {"text": text} if path.endswith("/v1/completions") else {"message": {"content": text}}
        return 200, {}, {"choices": [choice], "usage": {"total_tokens": used}}


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            stub.headers.append(dict(self.headers))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, answer = stub.answer(self.path, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client was killed meanwhile

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
