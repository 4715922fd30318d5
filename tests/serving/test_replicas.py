"""Two replicas behind one address, by a Ray of their own. python -m pytest tests/serving/test_replicas.py"""

import os
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from foreword.errors import ConfigError
from foreword.models.load import load
from foreword.serving.app import Limits
from foreword.serving.archive import pack_archive
from foreword.serving.engine import Engine, Room
from foreword.serving.keys import KeyRing
from foreword.serving.protocol import RowRequest
from foreword.serving.store import PromptStore
from tests.serving.made import artefact
from tests.serving.processes import Process, is_loopback, listening, process
from tests.serving.running import ROOM, filled

pytest.importorskip("ray.serve", reason="needs foreword[ray]")
NAMES = ("replica", "version")


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture(scope="module")
def root(tmp_path_factory, lm) -> Path:
    return filled(tmp_path_factory.mktemp("replicas") / "store", lm)


@pytest.fixture(scope="module")
def token(root) -> str:
    return KeyRing.open(root).add(["*"], ["*"])


@pytest.fixture(scope="module")
def running(root, token):
    with process(root, "--replicas", "2", "--rows", "4") as started:
        started.address()
        yield started


@pytest.fixture
def http(running, token):
    with httpx.Client(base_url=running.address(), timeout=60, headers={"Authorization": f"Bearer {token}"}) as made:
        yield made


def by_both(http: httpx.Client, method: str, path: str, since: float, **body) -> list[httpx.Response]:
    """Answers of both replicas, three of each or more, all of them a second after what changed, or later."""
    time.sleep(max(0.0, since + 1 - time.monotonic()))
    found: dict[str, list[httpx.Response]] = defaultdict(list)
    for _ in range(300):
        answer = http.request(method, path, **body)
        found[answer.headers["x-foreword-replica"]].append(answer)
        if len(found) == 2 and min(map(len, found.values())) >= 3:
            break
    assert len(found) == 2, found.keys()
    return [answer for answers in found.values() for answer in answers]


def test_both_answer_what_one_engine_does(http, root, lm):
    asked = {"model": "beta", "input": ["fine film", "dull"]}
    with Engine(lm, ROOM) as engine:
        wanted = engine.classify([RowRequest(PromptStore.open(root).resolve("beta"), text) for text in asked["input"]])
        probabilities = [one.probabilities for one in wanted.result(60)]
    for answer in by_both(http, "POST", "/v1/classify", 0.0, json=asked):
        assert [one["probabilities"] for one in answer.json()["data"]] == [
            pytest.approx(one, abs=1e-6) for one in probabilities
        ]
    streamed = {"model": "two", "prompt": "a", "max_tokens": 12, "temperature": 0}
    whole = {a.json()["choices"][0]["text"] for a in by_both(http, "POST", "/v1/completions", 0.0, json=streamed)}
    with http.stream("POST", "/v1/completions", json={**streamed, "stream": True}) as answer:
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert len(whole) == 1 and len(events) > 2 and events[-1] == "[DONE]"
    pages = {a.headers["x-foreword-replica"]: a.text for a in by_both(http, "GET", "/metrics", 0.0)}
    for name, page in pages.items():
        told = [line for line in page.splitlines() if not line.startswith("#")]
        assert told and all(f'replica="{name}"' in line for line in told)


def test_what_one_changes_all_serve_within_a_second(http, tmp_path, lm):
    versions = [pack_archive(artefact(lm, "ahead", seed=seed).save(tmp_path / str(seed))) for seed in (11, 12)]
    label = {"json": {"model": "new", "input": "a film"}}

    def served() -> tuple[str, str]:
        told = {
            (a.json()["model"], str(a.json()["data"])) for a in by_both(http, "POST", "/v1/classify", since, **label)
        }
        assert len(told) == 1, told
        return told.pop()

    assert http.put("/v1/prompts/new", content=versions[0]).json()["id"] == "new@1"
    since = time.monotonic()
    first = served()
    assert http.put("/v1/prompts/new", content=versions[1]).json()["id"] == "new@2"
    since = time.monotonic()
    second = served()
    assert (first[0], second[0]) == ("new@1", "new@2") and first[1] != second[1]
    assert http.post("/v1/prompts/new/rollback").json()["id"] == "new@1"
    since = time.monotonic()
    assert served() == first
    # Whoever changes it needs not wait: each change is on top of the ones before, whichever replica takes it.
    for number in range(6):
        assert http.put("/v1/prompts/quick", content=versions[number % 2]).json()["id"] == f"quick@{number + 1}"
        assert http.put("/v1/prompts/quick/aliases/a", json={"version": number + 1}).status_code == 204
    assert http.put("/v1/prompts/new/aliases/beta", json={"version": 2}).status_code == 204
    since = time.monotonic()
    label["json"]["model"] = "new@beta"
    assert served() == second
    label["json"]["model"] = "new"
    assert http.delete("/v1/prompts/new").status_code == 204
    since = time.monotonic()
    for answer in by_both(http, "POST", "/v1/classify", since, **label):
        assert answer.status_code == 404


def test_keys_hold_in_both(http, root, running):
    label = {"json": {"model": "beta", "input": "a film"}}
    for headers in ({}, {"Authorization": "Bearer fw_x_y"}):
        with httpx.Client(base_url=running.address(), headers=headers) as other:
            assert {a.status_code for a in by_both(other, "POST", "/v1/classify", 0.0, **label)} == {401}
    ring = KeyRing.open(root)
    own = ring.add(["acme-*"])
    with httpx.Client(base_url=running.address(), headers={"Authorization": f"Bearer {own}"}, timeout=60) as tenant:
        mine = {"json": {"model": "acme-words", "input": "a film"}}
        assert {a.status_code for a in by_both(tenant, "POST", "/v1/classify", 0.0, **label)} == {404}
        assert {a.status_code for a in by_both(tenant, "POST", "/v1/classify", 0.0, **mine)} == {200}
        assert tenant.put("/v1/prompts/acme-words", content=b"x").status_code == 403
        ring.remove(own.split("_")[1])
        assert {a.status_code for a in by_both(tenant, "POST", "/v1/classify", time.monotonic(), **mine)} == {401}


def test_only_this_machine_is_let_in(running, http):
    """All that listens does so on loopback, but for a port of each replica's that Ray Serve opens to all: it wants the
    token, which is of this Ray alone."""
    import grpc

    heard = {one for pid in running.family() for one in listening(pid)}
    port = int(running.address().rpartition(":")[2])
    assert ("0100007F", port) in heard and len(heard) > 5
    wide = {number for address, number in heard if not is_loopback(address)}
    assert len(wide) <= 2
    environ = Path(f"/proc/{max(running.family())}/environ").read_bytes().split(b"\0")
    [secret] = [line.partition(b"=")[2].decode() for line in environ if line.startswith(b"RAY_AUTH_TOKEN=")]
    for number in wide:
        with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            told = {}
            for given in ("", "x" * len(secret), secret):
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=20, metadata=[("authorization", f"Bearer {given}")] if given else None)
                told[given] = caught.value.code()
        control = told.pop(secret)  # with it the call comes through to what it cannot read
        assert set(told.values()) == {grpc.StatusCode.UNAUTHENTICATED} and control != grpc.StatusCode.UNAUTHENTICATED


def stops(own: Process, token: str, number: int) -> None:
    """Texts that are under way when the signal comes are ended, and nothing is left of all that was started."""
    address, headers = own.address(), {"Authorization": f"Bearer {token}"}
    asked = {"model": "two", "prompt": "a", "max_tokens": 300, "n": 64, "temperature": 2.0}
    found: list[httpx.Response] = []
    with httpx.Client(base_url=address, headers=headers, timeout=120) as http:

        def ask() -> None:
            found.append(http.post("/v1/completions", json=asked))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for one in asking:
            one.start()
        until = time.monotonic() + 60
        # A replica refuses what comes to it after the signal. More texts than two requests have are of all three.
        while under_way(http) <= 2 * asked["n"]:
            assert not found and time.monotonic() < until
        assert not found
        assert own.end(number, 120) == 0
        for one in asking:
            one.join(60)
    assert [answer.status_code for answer in found] == [200, 200, 200]
    assert all(len(answer.json()["choices"]) == asked["n"] for answer in found)
    assert gone(own), own.family()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def under_way(http: httpx.Client) -> float:
    """Texts under way in the replicas that answer; one request would go to the idler alone, hence several at once."""
    with ThreadPoolExecutor(8) as pool:
        pages = [*pool.map(lambda _: http.get("/metrics").text, range(8))]
    found = {}
    for page in pages:
        told = re.findall(r'^foreword_(?:waiting|generating){replica="(.+)"} (.+)$', page, re.MULTILINE)
        found[told[0][0]] = sum(float(value) for _, value in told)
    return sum(found.values())


def gone(own: Process) -> bool:
    until = time.monotonic() + 20
    while own.family() and time.monotonic() < until:
        time.sleep(0.1)
    return not own.family()


def test_what_is_missing_or_taken_is_said(monkeypatch, tmp_path, running):
    from foreword.serving import replicas

    plan = replicas.ReplicaPlan(tmp_path, lambda: load("foreword-tiny"), Room(), Limits())
    port = int(running.address().rpartition(":")[2])
    with pytest.raises(ConfigError, match="cannot listen"):
        replicas.serve_replicas(plan, 2, "127.0.0.1", port, ready=print)
    before = dict(os.environ)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'foreword\[ray\]'"):
        replicas.serve_replicas(plan, 2, "127.0.0.1", 0, ready=print)
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_said(root):
    with process(root, "--replicas", "2", "--model", str(root / "none")) as own:
        assert own.run.wait(240) != 0
        own.reader.join(10)
        assert "none" in own.lines[-1] and "cannot start" in own.lines[-1], own.lines
        assert gone(own)


@pytest.mark.parametrize(
    ("cores", "replicas", "wanted"),
    [
        ([8], 2, 4),
        ([2], 2, 1),
        ([3, 3], 3, 1),
        ([3, 3], 2, 3),
        ([4, 2], 3, 2),
        ([2], 3, 0.5),
        ([2], 5, 1 / 3),
        ([16], 1, 16),
    ],
)
def test_processors_are_shared_out(cores, replicas, wanted):
    from foreword.serving.replicas import share

    assert share(cores, replicas) == pytest.approx(wanted)


def test_a_stop_ends_what_was_accepted_and_leaves_nothing(running, token):
    """The last test of this file: the others' server goes."""
    stops(running, token, signal.SIGTERM)


@pytest.mark.slow
def test_ctrl_c_goes_to_all_and_ends_the_same_way(root, token):
    with process(root, "--replicas", "2", "--rows", "4") as own:
        stops(own, token, signal.SIGINT)
