"""Connections, heads, bodies and what a key keeps are bounded. python -m pytest tests/serving/test_bounded.py"""

import contextlib
import errno
import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from foreword.cli.main import cli
from foreword.errors import ConfigError
from foreword.models.load import load
from foreword.serving import connections, journal
from foreword.serving import run as run_module
from foreword.serving.archive import pack_archive
from foreword.serving.keys import KeyRing
from foreword.serving.names import parse
from foreword.serving.quota import Quota, Used
from foreword.serving.run import protocol
from foreword.serving.store import OverQuota, PromptStore
from tests.serving.made import artefact
from tests.serving.running import Limits, client, filled, listening, server

HEAD = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HALF = f"POST /v1/classify {HEAD}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode()
LABEL = {"model": "two", "input": "x"}


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture(scope="module")
def root(tmp_path_factory, lm) -> Path:
    return filled(tmp_path_factory.mktemp("bounded") / "store", lm)


@contextlib.contextmanager
def bounded(root, lm, most: int = 20, idle: float = 1.0, limits: Limits | None = None) -> Iterator[int]:
    """The port of a server with the connections that `foreword serve` has."""
    with server(root, lm, limits) as own, listening(own, http=protocol(most, idle)) as address:
        yield int(address.rpartition(":")[2])


OPENED: list[socket.socket] = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while OPENED:
        OPENED.pop().close()


def joined(port: int, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    OPENED.append(made)
    made.sendall(sent)
    return made


def rest_of(made: socket.socket) -> bytes:
    """Everything until the other end closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := made.recv(65536):
            found += part
    return found


def test_connections_without_a_whole_head_end_whatever_they_send(root, lm):
    """Silent ones, half heads, heads by drops, silence after an answer; and a stream of answers does not."""
    begun = f"GET /health {HEAD}X: ".encode()
    with bounded(root, lm, idle=1.0) as port:
        since = time.monotonic()
        ends = [joined(port), joined(port, begun), joined(port, b"\r\n"), joined(port, b"G"), joined(port, begun)]
        for one in ends:
            one.setblocking(False)
        answered = joined(port, f"GET /health {HEAD}\r\n".encode())
        assert b"200 OK" in answered.recv(4096)
        answered.setblocking(False)
        ends.append(answered)
        busy = joined(port)
        left = {*ends}
        while left and time.monotonic() - since < 20:
            for one in [*left]:
                with contextlib.suppress(BlockingIOError):
                    try:
                        left -= {one} if one.recv(4096) == b"" else set()
                    except ConnectionError:
                        left -= {one}
            if ends[4] in left:
                with contextlib.suppress(OSError):
                    ends[4].send(b"x")  # drop by drop: a head has so much time in all
            busy.sendall(f"GET /health {HEAD}\r\n".encode())
            assert b"200 OK" in busy.recv(4096)
            time.sleep(0.1)
        assert not left and 0.9 < time.monotonic() - since < 15
        busy.sendall(f"GET /health {HEAD}\r\n".encode())
        assert b"200 OK" in busy.recv(4096)


ENDLESS = {
    "header": f"GET /health {HEAD}X: ".encode(),
    "name": f"GET /health {HEAD}".encode(),
    "url": b"GET /",
    "method": b"",
    "trailer": f"POST /v1/classify {HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\nX: ".encode(),
    "chunk": f"POST /v1/classify {HEAD}Transfer-Encoding: chunked\r\n\r\n5;".encode(),
    "second": f"GET /health {HEAD}\r\nGET /health {HEAD}X: ".encode(),
}


@pytest.mark.parametrize("kind", [*ENDLESS, "headers"])
def test_endless_heads_are_cut_early(root, lm, kind):
    first = ENDLESS.get(kind, ENDLESS["name"])
    part = b"a: b\r\n" * 2000 if kind == "headers" else b"a" * 12_000
    with bounded(root, lm, idle=20.0) as port, joined(port, first) as made:
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 30_000_000:
                sent += made.send(part)
        assert sent < 30_000_000
        told = rest_of(made)
        assert not told or b" 431 " in told or b" 400 " in told
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 200


def test_a_head_that_is_too_large_is_told_so_in_the_usual_shape(root, lm):
    with bounded(root, lm) as port:
        for header, fits in ((15_000, True), (40_000, False)):
            with joined(port, f"GET /health {HEAD}X: {'x' * header}\r\nConnection: close\r\n\r\n".encode()) as made:
                told = rest_of(made)
            head, _, body = told.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200" if fits else b"HTTP/1.1 431"), head
            assert fits or "16,384 bytes" in json.loads(body)["error"]["message"]


def test_requests_sent_ahead_are_answered_in_their_order(root, lm):
    """Three hundred in one write: parsed by parts, and none is lost or answered twice."""
    names = [f"n{number}" for number in range(300)]
    body = [json.dumps({"model": name, "input": "x"}) for name in names]
    form = f"POST /v1/classify {HEAD}Content-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
    sent = "".join(form % (len(b), "Connection: close\r\n" if b is body[-1] else "", b) for b in body).encode()
    with bounded(root, lm, idle=20.0) as port, joined(port, sent) as made:
        told = rest_of(made)
    at = [told.find(f"'{name}'".encode()) for name in names]
    assert told.count(b"HTTP/1.1 404") == 300 and at == sorted(at) and at[0] > 0


def test_whoever_opens_very_many_keeps_nobody_out(root, lm):
    """The oldest that wait make room; a request that is under way stays."""
    with bounded(root, lm, most=10, idle=30.0, limits=Limits(idle=3.0)) as port:
        busy = joined(port, HALF)
        time.sleep(0.3)
        many = [joined(port) for _ in range(40)]
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 200
        time.sleep(0.3)
        alive = 0
        for one in many:
            one.setblocking(False)
            with contextlib.suppress(ConnectionError):
                try:
                    alive += one.recv(1) != b""
                except BlockingIOError:
                    alive += 1
        assert alive <= 9
        busy.setblocking(False)
        with pytest.raises(BlockingIOError):
            busy.recv(1)
        many[-1].setblocking(True)
        many[-1].sendall(f"GET /health {HEAD}\r\n".encode())
        assert b"200 OK" in many[-1].recv(4096), "the newest stay"


def test_if_all_are_in_use_one_more_is_told_so(root, lm):
    with bounded(root, lm, most=3, idle=30.0, limits=Limits(idle=3.0)) as port:
        for _ in range(3):
            joined(port, HALF)
        time.sleep(0.3)
        assert rest_of(joined(port)).startswith(b"HTTP/1.1 503")


def test_a_reader_that_takes_nothing_is_cut(root, lm, monkeypatch):
    monkeypatch.setattr(run_module, "STALLED", 0.5)
    with bounded(root, lm, idle=30.0) as port:
        made = socket.socket()
        OPENED.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(20)
        made.connect(("127.0.0.1", port))
        until = time.monotonic() + 30
        cut = False
        while not cut and time.monotonic() < until:  # it never reads
            try:
                made.sendall(f"GET /openapi.json {HEAD}\r\n".encode() * 20)
            except ConnectionError:
                cut = True
        assert cut


def test_the_process_keeps_files_for_other_things(monkeypatch):
    limits, asked = (1024, 1024), []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    assert connections.room_for(2048) == 1024 - connections.SPARE and asked == []
    limits = (1024, 10_000)
    assert connections.room_for(2048) == 2048 and asked == [(2048 + connections.SPARE, 10_000)]
    limits = (64, 64)
    assert 1 <= connections.room_for(2048) <= 32


# Bodies, by key.


@pytest.fixture
def keyed(root, lm):
    """A server with keys: its client without one, and a function that adds keys."""
    limits = Limits(idle=0.6, rate=1000, seconds=20.0, requests=6, uploads=2, upload=50_000)
    with server(root, lm, limits) as own, client(own) as http:
        yield own, http
    own.keys.file.unlink(missing_ok=True)


def half(http: httpx.Client, token: str, path: str = "/v1/classify", method: str = "POST", length: int = 5000):
    head = f"{method} {path} {HEAD}Content-Type: application/json\r\nAuthorization: Bearer {token}\r\n"
    return joined(http.base_url.port, f"{head}Content-Length: {length}\r\n\r\n{{".encode())


def label(http: httpx.Client, token: str, name: str = "two") -> httpx.Response:
    return http.post("/v1/classify", json={"model": name, "input": "x"}, headers={"Authorization": f"Bearer {token}"})


def test_a_key_that_may_use_nothing_is_refused_before_its_body(keyed, root):
    own, http = keyed
    ring = KeyRing.open(root)
    nothing, some, late = ring.add(["zzz*"]), ring.add(["two"]), ring.add(["new-*"])
    for path in ("/v1/classify", "/v1/completions", "/v1/prompts/two/rollback"):
        with half(http, nothing, path) as made:  # its body never comes
            assert made.recv(4096).split()[1] == b"404", path
    assert label(http, some).status_code == 200
    assert label(http, nothing).status_code == 404
    assert label(http, late).status_code == 404
    own.store.add("new-one", {f.name: f.read_bytes() for f in own.store.resolve("two").folder.iterdir()})
    assert label(http, late, "new-one").status_code == 200, "a prompt that has come is seen at once"
    assert label(http, nothing).status_code == 404
    own.store.remove("new-one")
    assert label(http, late).status_code == 404


def test_bodies_that_stop_hold_no_place_and_are_given_up(keyed, root):
    own, http = keyed
    ring = KeyRing.open(root)
    slow, other = ring.add(["two"], ["two"]), ring.add(["two"], ["up-*"])
    made = [half(http, slow) for _ in range(12)]
    puts = [half(http, slow, "/v1/prompts/two", "PUT") for _ in range(4)]
    until = time.monotonic() + 20
    while own.active < 6 and time.monotonic() < until:
        time.sleep(0.01)
    assert own.places.requests.total == 0 and own.places.uploads.total == 0
    assert label(http, other).status_code == 200
    statuses = sorted(one.recv(4096).split()[1] for one in [*made, *puts])
    assert statuses == [b"408"] * 6 + [b"429"] * 10
    assert own.active == 0 and own.places.bytes.total == 0
    assert label(http, slow).status_code == 200


def test_a_slow_body_that_keeps_its_rate_is_read_and_a_slower_one_is_not(keyed, root):
    own, http = keyed
    token = KeyRing.open(root).add(["two"])
    for chunk, size, status in ((400, 2000, 200), (20, 200, 408)):
        body = json.dumps(LABEL).encode() + b" " * size

        def slowly(chunk=chunk, body=body):
            for start in range(0, len(body), chunk):
                yield body[start : start + chunk]
                time.sleep(0.2)

        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):
            assert http.post("/v1/classify", content=slowly(), headers=headers).status_code == status
    assert own.active == 0


def test_bytes_of_bodies_are_shared_between_keys(keyed, root, lm, tmp_path):
    """Two of 50 kB fill what there is; another key's upload is let in, and the first key's third is not."""
    own, http = keyed
    ring = KeyRing.open(root)
    one, two = ring.add(["two"], ["a-*"]), ring.add(["two"], ["b-*"])
    data = pack_archive(artefact(lm, "ahead").save(tmp_path / "up"))
    own.places.bytes.take(ring.find(one).id, 100_000)  # type: ignore[union-attr]
    sent = [
        http.put(f"/v1/prompts/{name}", content=data, headers={"Authorization": f"Bearer {token}"})
        for name, token in (("a-x", one), ("b-x", two))
    ]
    assert [answer.status_code for answer in sent] == [429, 201]
    assert "bytes of bodies are under way" in sent[0].json()["error"]["message"]
    own.store.remove("b-x")


def test_a_key_s_own_limits_hold_at_once_and_by_default(root, lm):
    ring = KeyRing.open(root)
    limits = Limits(idle=5.0, key=Quota(requests=2, rows=3))
    try:
        with server(root, lm, limits) as own, client(own) as http:
            token, wide = ring.add(["two"]), ring.add(["two"], limits=["requests=none", "rows=9"])
            rows = {"model": "two", "input": ["x"] * 4}
            headers = {"Authorization": f"Bearer {token}"}
            answer = http.post("/v1/classify", json=rows, headers=headers)
            assert answer.status_code == 429 and "it may have 3" in answer.json()["error"]["message"]
            assert http.post("/v1/classify", json=rows, headers={"Authorization": f"Bearer {wide}"}).status_code == 200
            held = [half(http, token) for _ in range(2)]
            until = time.monotonic() + 20
            while own.active < 2 and time.monotonic() < until:
                time.sleep(0.01)
            answer = label(http, token)
            assert answer.status_code == 429 and "may have 2 at once" in answer.json()["error"]["message"]
            id = ring.find(token).id  # type: ignore[union-attr]
            ring.limit(id, ["rows=4", "requests=3"])
            assert label(http, token).status_code == 200
            for one in held:
                one.close()
    finally:
        ring.file.unlink()


# What a key keeps in the store.


def contents(seed: int, size: int = 1000) -> dict[str, bytes]:
    return {"foreword.json": b"{%d}" % seed, "prompt.safetensors": bytes(size)}


def test_a_key_keeps_so_many_prompts_versions_and_bytes(tmp_path):
    store = PromptStore.open(tmp_path, create=True)
    quota = Quota(prompts=2, versions=4, bytes=5000)
    for number, name in enumerate(("a", "b", "a")):
        store.add(name, contents(number), by="k", quota=quota)
    assert store.add("a", contents(2), by="k", quota=quota).number == 2, "the same bytes are the same version"
    with pytest.raises(OverQuota, match="2 prompts that are stored and may have 2"):
        store.add("c", contents(0), by="k", quota=quota)
    store.add("c", contents(0), by="other", quota=quota)
    store.add("a", contents(3), by="k", quota=quota)
    with pytest.raises(OverQuota, match="4 versions"):
        store.add("a", contents(4), by="k", quota=quota)
    with pytest.raises(OverQuota, match="prompts"):  # a name that another key added counts for both
        store.add("c", contents(9), by="k", quota=quota)
    again = PromptStore.open(tmp_path)
    for one in (store, again):
        assert one._journal.usage.of("k") == Used(2, 4, 4 * 1003)
    store.remove("a")  # its folders stay for a minute, and so do its bytes
    assert store._journal.usage.of("k") == Used(1, 1, 4 * 1003)
    with pytest.raises(OverQuota, match="a minute later"):
        store.add("d", contents(5), by="k", quota=quota)
    assert again.refresh() and again._journal.usage.of("k") == Used(1, 1, 4 * 1003)


def test_removed_bytes_are_free_once_their_folders_are_gone(tmp_path, monkeypatch):
    store = PromptStore.open(tmp_path, create=True)
    store.add("a", contents(1), by="k")
    store.add("a", contents(2), by="k")
    store.remove("a", 1)
    assert store._journal.usage.of("k") == Used(1, 1, 2006)
    store.remove("a")
    monkeypatch.setattr(time, "time", lambda moment=time.time: moment() + 1000)
    store.clear()
    assert store._journal.usage.of("k") == Used() and not (tmp_path / "served/names/a/1").exists()
    assert "owed" not in json.loads((tmp_path / "served/names/a/served.json").read_text())


def test_states_without_keys_are_nobody_s(tmp_path):
    """Stores of before, what training wrote, and a state that somebody changed by hand."""
    store = PromptStore.open(tmp_path, create=True)
    store.add("a", contents(1))
    file = tmp_path / "served/names/a/served.json"
    state = json.loads(file.read_text())
    assert "by" not in state["versions"]["1"] and "owed" not in state
    for by, size in ((5, 5), ("k", "x"), ("k", None), ("", 5)):
        state["versions"]["1"].update(by=by, bytes=size)
        file.write_text(json.dumps(state))
        assert PromptStore.open(tmp_path)._journal.usage.of("k") == Used()


def test_the_quota_of_a_key_by_http(root, lm, tmp_path):
    ring = KeyRing.open(root)
    token = ring.add(["q-*"], ["q-*"], limits=["prompts=1"])
    data = pack_archive(artefact(lm, "ahead").save(tmp_path / "up"))
    try:
        with server(root, lm) as own, client(own, token=token) as http:
            assert [http.put(f"/v1/prompts/q-{n}", content=data).status_code for n in (1, 1, 2)] == [201, 201, 409]
            assert "may have 1" in http.put("/v1/prompts/q-2", content=data).json()["error"]["message"]
            assert http.delete("/v1/prompts/q-1").status_code == 204
            assert http.put("/v1/prompts/q-2", content=data).status_code == 201
            own.store.remove("q-2")
    finally:
        ring.file.unlink()


def test_limits_on_the_command_line(tmp_path):
    run = CliRunner()
    made = run.invoke(cli, ["keys", "add", str(tmp_path), "--infer", "*", "--limit", "rows=5", "--limit", "bytes=2GB"])
    ring = KeyRing.open(tmp_path)
    key = ring.find(made.stdout.strip())
    assert key is not None and key.quota == Quota(rows=5, bytes=2 * 10**9)
    assert "rows=5 bytes=2000000000" in run.invoke(cli, ["keys", "list", str(tmp_path)]).stdout
    changed = run.invoke(cli, ["keys", "limit", str(tmp_path), key.id, "rows=none", "uploads=1"])
    assert changed.exit_code == 0
    assert ring.list()[0].quota == Quota(uploads=1, bytes=2 * 10**9) and ring.find(made.stdout.strip()) is not None
    for wrong in (["rows=x"], ["lines=3"], ["rows"]):
        refused = run.invoke(cli, ["keys", "limit", str(tmp_path), key.id, *wrong])
        assert refused.exit_code and isinstance(refused.exception, ConfigError)
    # A key in place of its id is in no error.
    token = made.stdout.strip()
    for command in (["keys", "remove", str(tmp_path), token], ["keys", "limit", str(tmp_path), token, "rows=1"]):
        refused = run.invoke(cli, command)
        said = f"{refused.output}{refused.exception}"
        assert refused.exit_code and not any(part in said for part in token.split("_", 2)[1:])


@pytest.mark.parametrize("limits", [{"rows": -1}, {"rows": "5"}, {"lines": 5}, [5], "rows=5", None])
def test_damaged_limits_let_nobody_in(tmp_path, limits):
    ring = KeyRing.open(tmp_path)
    token = ring.add(["*"])
    entries = json.loads(ring.file.read_text())
    ring.file.write_text(json.dumps([{**entries[0], "limits": limits}]))
    assert ring.find(token) is None
    entries[0].pop("limits")
    ring.file.write_text(json.dumps(entries))  # as keys were before they had limits
    assert ring.find(token) is not None


# A folder that cannot be written, and names.


def freeze(monkeypatch, number: int) -> None:
    """No file can be opened to be written, and no folder made."""
    inner, made = Path.open, Path.mkdir

    def refuse(path: Path):
        raise OSError(number, os.strerror(number), str(path))

    def opens(self, mode="r", *rest, **more):
        return refuse(self) if {*mode} & {*"wax+"} else inner(self, mode, *rest, **more)

    def mkdir(self, *rest, **more):
        return made(self, *rest, **more) if self.is_dir() else refuse(self)

    monkeypatch.setattr(Path, "open", opens)
    monkeypatch.setattr(Path, "mkdir", mkdir)


@pytest.mark.parametrize("before", [False, True], ids=["never served", "served before"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_served(tmp_path, lm, monkeypatch, before, number):
    root = filled(tmp_path / "store", lm)
    if before:
        added = PromptStore.open(root)
        added.add("new", {f.name: f.read_bytes() for f in added.resolve("two").folder.iterdir()})
        artefact(lm, "ahead", seed=77).save(root / "artefacts" / "two")  # trained again since
    data = pack_archive(root / "artefacts" / "two")
    freeze(monkeypatch, number)
    with server(root, lm) as own, client(own) as http:
        assert own.store.read_only
        names = {"acme-reviews", "acme-words", "beta", "two"} | ({"new"} if before else set())
        assert {*own.store.names()} == names
        answers = {name: http.post("/v1/classify", json={"model": name, "input": "x"}) for name in names}
        assert {answer.status_code for answer in answers.values()} == {200}
        assert answers["two"].json()["model"] == ("two@2" if before else "two@1")
        assert http.get("/v1/prompts/two").status_code == 200
        refused = [
            http.put("/v1/prompts/other", content=data), http.delete("/v1/prompts/two"),
            http.put("/v1/prompts/two/aliases/a", json={"version": 1}), http.post("/v1/prompts/two/rollback"),
        ]  # fmt: skip
        for answer in refused:
            assert answer.status_code == 403 and "read-only" in answer.json()["error"]["message"]
        with pytest.raises(ConfigError, match="read-only"):
            own.store.remove("two")
        time.sleep(0.6)  # the watch goes on without a word
    with pytest.raises(OSError):  # noqa: PT011 - nothing is there, and nothing can be
        PromptStore.open(tmp_path / "none", create=True)


def test_a_version_has_one_name(root, lm):
    assert parse("two@1") == ("two", 1)
    for wrong in ("two@01", "two@0", "two@00001", "two@0000000001"):
        with pytest.raises(ConfigError):
            parse(wrong)
    with server(root, lm) as own, client(own) as http:
        for wrong in ("two@01", "two@0"):
            assert http.post("/v1/classify", json={"model": wrong, "input": "x"}).status_code == 404
        for wrong in ("01", "+1", "1.0", "%201", "1_0", "0"):
            assert http.delete(f"/v1/prompts/two/versions/{wrong}").status_code == 400, wrong


def test_a_method_that_is_not_there_names_those_that_are(root, lm):
    with server(root, lm) as own, client(own) as http:
        for method, path, allowed in (
            ("PATCH", "/v1/prompts/x", "DELETE, GET, PUT"), ("GET", "/v1/prompts/x/share", "DELETE, PUT"),
            ("POST", "/health", "GET"), ("GET", "/v1/classify", "POST"), ("PUT", "/v1/models/a/b", "GET"),
        ):  # fmt: skip
            answer = http.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_the_journal_is_locked_where_it_can_be(tmp_path):
    """The control of the folders above: one that can be written takes the lock and is not read-only."""
    store = PromptStore.open(tmp_path, create=True)
    assert not store.read_only and (tmp_path / "served" / journal.LOCK).exists()
    assert replace(store.add("a", contents(1)), folder=tmp_path).number == 1
