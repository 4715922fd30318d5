"""What a server under fire is asked by several clients at once, and what came of each request."""

import contextlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from tests.serving.book import NEW, SAME, TEXTS, Book, Known, odds_of


@dataclass
class Tally:
    """What came of every request; `wrong` has to stay empty."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what[:600])


@dataclass
class Fire:
    """Everything the clients share. While `down` is set the server is being killed, and connections may fail."""

    port: int
    tokens: dict[str, str]
    names: dict[str, list[str]]
    pool: dict[str, list[Known]]
    limit: int  # requests of one client
    book: Book = field(default_factory=Book)
    tally: Tally = field(default_factory=Tally)
    down: threading.Event = field(default_factory=threading.Event)
    kills: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def headers(self, tenant: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[tenant]}"}

    @contextlib.contextmanager
    def client(self, tenant: str) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.address, headers=self.headers(tenant), timeout=60) as made:
            yield made

    def goes_on(self, done: int) -> bool:
        return done < self.limit and not self.ended.is_set()

    def attempt(self, what: str, work: Callable[[], str]) -> None:
        """One request: an answer that is right, an error that may be, or a connection that a kill has cut."""
        down, kills = self.down.is_set(), self.kills
        try:
            self.tally.add(f"{what}: {work()}")
        except (httpx.TransportError, OSError) as error:
            if isinstance(error, httpx.TimeoutException | TimeoutError) or not (down or self.kills > kills):
                self.tally.fail(f"{what}: no answer ({type(error).__name__}: {error})")
            else:
                self.tally.add("cut by a kill")
                time.sleep(0.2)
        except Exception as error:
            self.tally.fail(f"{what}: {type(error).__name__}: {error}")


def reader(fire: Fire, tenant: str, seed: int) -> None:
    """Labels and texts, whole and streamed; another tenant's names; bodies that are wrong; and going in mid-stream."""
    rng = random.Random(seed)
    kinds = {labels: 5, texts: 3, streams: 3, leaves: 2, malformed: 2, foreign: 2, torn: 1}
    with fire.client(tenant) as http:
        done = 0
        while fire.goes_on(done):
            done += 1
            [kind] = rng.choices([*kinds], [*kinds.values()])
            fire.attempt(kind.__name__, lambda kind=kind: kind(fire, http, tenant, rng))


def labels(fire: Fire, http: httpx.Client, tenant: str, rng: random.Random) -> str:
    name, at = rng.choice(fire.names[tenant]), [rng.randrange(len(TEXTS)) for _ in range(rng.choice([1, 1, 4]))]
    since = time.monotonic()
    answer = http.post("/v1/classify", json={"model": name, "input": [TEXTS[i] for i in at]})
    options = fire.book.valid(name, since, time.monotonic())
    if answer.status_code == 404:
        assert None in options, f"{name} was there"
        return "404"
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    found = [{*one["probabilities"]} for one in data]
    of = [one for one in options if one is not None and all({*one.labels} == own for own in found)]
    valid = [one and one.labels for one in options]
    assert len(data) == len(at) and of, f"{name} answered with {found}, valid were {valid}"
    for one, i in zip(data, at, strict=True):
        odds = odds_of(*(one["probabilities"][label] for label in of[0].labels))
        assert abs(odds - of[0].odds[i]) < SAME, f"{name}: {odds} is not {of[0].odds[i]}"
    return "200"


def _completion(name: str, i: int, **more: object) -> dict[str, object]:
    return {"model": name, "prompt": TEXTS[i], "max_tokens": NEW, "temperature": 0, **more}


def _check_text(fire: Fire, name: str, i: int, text: str, since: float) -> None:
    options = fire.book.valid(name, since, time.monotonic())
    assert text in [one.texts[i] for one in options if one is not None], f"{name} wrote {text!r}"


def texts(fire: Fire, http: httpx.Client, tenant: str, rng: random.Random) -> str:
    name, i, since = rng.choice(fire.names[tenant]), rng.randrange(len(TEXTS)), time.monotonic()
    answer = http.post("/v1/completions", json=_completion(name, i))
    if answer.status_code == 404:
        assert None in fire.book.valid(name, since, time.monotonic()), f"{name} was there"
        return "404"
    assert answer.status_code == 200, answer.text
    _check_text(fire, name, i, answer.json()["choices"][0]["text"], since)
    return "200"


def streams(fire: Fire, http: httpx.Client, tenant: str, rng: random.Random) -> str:
    name, i, since = rng.choice(fire.names[tenant]), rng.randrange(len(TEXTS)), time.monotonic()
    with http.stream("POST", "/v1/completions", json=_completion(name, i, stream=True)) as answer:
        lines = [line for line in answer.iter_lines() if line]
    if answer.status_code == 404:
        assert None in fire.book.valid(name, since, time.monotonic()), f"{name} was there"
        return "404"
    assert answer.status_code == 200 and lines[-1] == "data: [DONE]", lines
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    _check_text(fire, name, i, "".join(one["choices"][0]["text"] for one in events), since)
    return "200"


def leaves(fire: Fire, http: httpx.Client, tenant: str, rng: random.Random) -> str:
    """Read some of a long stream and go."""
    body = json.dumps({**_completion(rng.choice(fire.names[tenant]), 0, stream=True), "max_tokens": 300}).encode()
    with _asked(fire, tenant, "POST /v1/completions", body, len(body)) as raw:
        raw.recv(rng.choice([1, 300, 2000]))
    return "gone"


def torn(fire: Fire, http: httpx.Client, tenant: str, rng: random.Random) -> str:
    """Promise a body, send a part of it and go; or send what is no HTTP."""
    if rng.random() < 0.5:
        with _asked(fire, tenant, "POST /v1/classify", b'{"model": "', 1000):
            return "gone"
    with socket.create_connection(("127.0.0.1", fire.port), timeout=30) as raw:
        raw.sendall(rng.randbytes(200).replace(b"\n", b" ") + b"\r\n\r\n")
        raw.recv(1000)
    return "gone"


def _asked(fire: Fire, tenant: str, line: str, body: bytes, size: int) -> socket.socket:
    head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {fire.tokens[tenant]}\r\nContent-Length: {size}\r\n\r\n"
    raw = socket.create_connection(("127.0.0.1", fire.port), timeout=30)
    raw.sendall(head.encode() + body)
    return raw


def malformed(fire: Fire, http: httpx.Client, tenant: str, rng: random.Random) -> str:
    name = rng.choice(fire.names[tenant])
    whole = fire.pool[tenant][0].upload
    path, body, status = rng.choice(
        [
            ("/v1/classify", b"{", 400), ("/v1/classify", b"[" * 5000, 400), ("/v1/classify", b"\xff\xfe", 400),
            ("/v1/classify", b'{"model": "%s", "input": 3}' % name.encode(), 400),
            ("/v1/completions", b'{"model": "%s", "prompt": "x", "wrong": 1}' % name.encode(), 400),
            ("/v1/completions", b'{"model": "%s", "prompt": "x", "temperature": NaN}' % name.encode(), 400),
            ("/v1/completions", b'{"model": "%s", "prompt": "%s"}' % (name.encode(), b"x" * 60_000), 413),
            ("/v1/chat/completions", b'{"model": "%s", "messages": []}' % name.encode(), 400),
            (f"/v1/prompts/{name}", b"junk", 400), (f"/v1/prompts/{name}", whole[: len(whole) // 2], 400),
            (f"/v1/prompts/{name}", bytes(400_000), 413), (f"/v1/prompts/{name}/share", b'{"version": 0}', 400),
        ]
    )  # fmt: skip
    answer = http.request("PUT" if "prompts" in path else "POST", path, content=body)
    assert answer.status_code in (status, 404, 429), (path, body[:60], answer.status_code, answer.text)
    assert "error" in answer.json()
    return str(answer.status_code)


def foreign(fire: Fire, http: httpx.Client, tenant: str, rng: random.Random) -> str:
    """Another tenant's prompts are as if they were not, whatever is asked."""
    [other] = [one for one in fire.names if one != tenant]
    name = rng.choice(fire.names[other])
    method, path, body = rng.choice(
        [
            ("POST", "/v1/classify", {"model": name, "input": "x"}), ("POST", "/v1/completions", _completion(name, 0)),
            ("POST", "/v1/completions", _completion(f"{name}@1", 0, stream=True)), ("GET", f"/v1/models/{name}", None),
            ("GET", f"/v1/prompts/{name}", None), ("DELETE", f"/v1/prompts/{name}", None),
            ("POST", f"/v1/prompts/{name}/rollback", {}), ("GET", "/v1/models", None), ("GET", "/v1/prompts", None),
        ]
    )  # fmt: skip
    answer = http.request(method, path, json=body)
    if path in ("/v1/models", "/v1/prompts"):
        assert answer.status_code == 200 and other + "-" not in answer.text.replace(path, ""), answer.text
    else:
        assert answer.status_code == 404, (method, path, answer.text)
    return str(answer.status_code)


def writer(fire: Fire, tenant: str, seed: int) -> None:
    """The one who adds, replaces, takes back and removes this tenant's prompts; what is not known is looked up."""
    rng = random.Random(seed)
    earlier: dict[str, list[Known | None]] = {name: [] for name in fire.names[tenant]}  # since it was there
    with fire.client(tenant) as http:
        done = 0
        while fire.goes_on(done):
            done += 1
            name = rng.choice(fire.names[tenant])
            fire.attempt("change", lambda name=name: _change(fire, http, tenant, name, earlier[name], rng))


def _change(fire: Fire, http: httpx.Client, tenant: str, name: str, past: list, rng: random.Random) -> str:
    current, draw = fire.book.current(name), rng.random()
    if current is not None and draw < 0.15:
        kind, new = "delete", None
        call = lambda: http.delete(f"/v1/prompts/{name}")  # noqa: E731
    elif current is not None and past and draw < 0.3:
        kind, new = "roll back", past[-1]
        call = lambda: http.post(f"/v1/prompts/{name}/rollback")  # noqa: E731
    else:
        kind, new = "put", rng.choice([one for one in fire.pool[tenant] if one is not current])
        call = lambda: http.put(f"/v1/prompts/{name}", content=new.upload)  # noqa: E731
    fire.book.begin(name, new)
    try:
        answer = call()
    except httpx.TransportError:
        settle(fire, tenant, name)
        past.clear()
        raise
    happened = answer.status_code in (200, 201, 204)
    fire.book.end(name, happened)
    assert happened or answer.status_code == 429, (kind, answer.text)
    if happened:
        before = [*past, current] if current else []
        past[:] = [] if kind == "delete" else past[:-1] if kind == "roll back" else before
    return f"{kind} {answer.status_code}"


def settle(fire: Fire, tenant: str, name: str) -> None:
    """What a name is, after a change that nobody knows the end of."""
    until = time.monotonic() + 120
    while time.monotonic() < until and not fire.ended.is_set():
        try:
            with fire.client(tenant) as http:
                answer = http.get(f"/v1/prompts/{name}")
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        told = answer.json()
        one = None if answer.status_code == 404 else next(k for k in fire.pool[tenant] if [*k.labels] == told["labels"])
        fire.book.settle(name, one)
        return
