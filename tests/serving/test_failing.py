"""The engine fails, or is held: rows, probes and the process say so. python -m pytest tests/serving/test_failing.py"""

import contextlib
import threading
import time
from dataclasses import replace

import httpx
import pytest
import torch

import foreword.serving.text_generation as writing
from foreword.errors import ModelError
from foreword.models.load import load
from foreword.serving import run as run_module
from foreword.serving.engine import Engine
from foreword.serving.protocol import Busy, RowRequest, Sampling, Stopped
from foreword.serving.run import EngineFailed, run
from tests.serving.made import artefact, saved
from tests.serving.running import ROOM, Limits, Lines, client, filled, server

GREEDY = Sampling(max_tokens=6, temperature=0.0)
LABEL = {"model": "two", "input": "x"}


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture
def version(lm, tmp_path):
    return saved(tmp_path, "p", artefact(lm, "ahead"))


def texts(engine, version, count=6, **more):
    tickets = [engine.generate(RowRequest(version, f"row {n}"), replace(GREEDY, seed=n, **more)) for n in range(count)]
    return [ticket.result for ticket in tickets]


def whole(engine, version, wanted):
    """The engine answers as if nothing had been."""
    assert [one.result(60).text for one in texts(engine, version)] == wanted
    assert engine.classify([RowRequest(version, "x")]).result(60) and not engine.ended and engine.failure is None


@pytest.fixture
def wanted(lm, version):
    with Engine(lm, ROOM) as engine:
        return [one.result(60).text for one in texts(engine, version)]


def test_a_token_that_cannot_be_chosen_ends_its_own_row(lm, version, wanted, monkeypatch):
    inner = writing.choose

    def fails(logits_BV, choosers):
        if any(one.sampling.seed == 3 for one in choosers):
            raise MemoryError("planted")
        return inner(logits_BV, choosers)

    with Engine(lm, ROOM) as engine:
        monkeypatch.setattr(writing, "choose", fails)
        found = texts(engine, version)
        for n, one in enumerate(found):
            if n == 3:
                with pytest.raises(ModelError, match="MemoryError: planted"):
                    one.result(60)
            else:
                assert one.result(60).text == wanted[n]
        monkeypatch.undo()
        whole(engine, version, wanted)


@pytest.mark.parametrize("place", ["drop", "next", "add", "_one", "_hidden"])
@pytest.mark.parametrize("kind", [MemoryError, RuntimeError])
def test_any_other_failure_of_a_step_ends_those_under_way_and_nothing_else(
    lm, version, wanted, monkeypatch, place, kind
):
    owner = writing.Writers if place.startswith("_") else type(lm.cache(1))
    inner, calls = getattr(owner, place), 0
    first = 3 if place in ("drop", "add") else 7  # one call for each text, or one for each step

    def fails(self, *rest, **more):
        nonlocal calls
        calls += 1
        if first <= calls <= first + 4:
            raise kind("planted")
        return inner(self, *rest, **more)

    with Engine(lm, ROOM) as engine:
        monkeypatch.setattr(owner, place, fails)
        failed = 0
        for n, one in enumerate(texts(engine, version)):
            error = one.exception(60)
            assert isinstance(error, ModelError) or one.result().text == wanted[n]
            assert error is None or "planted" in str(error)
            failed += error is not None
        assert calls >= first and (failed or place in ("drop", "add")), calls
        monkeypatch.undo()
        whole(engine, version, wanted)
        until = time.monotonic() + 20
        while engine.load().generating and time.monotonic() < until:
            time.sleep(0.001)
        assert engine.load().generating == engine.load().waiting == 0


def lost(*_, **__):
    raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("place", ["choose", "score", "labelling", "take", "loop"])
def test_an_engine_that_cannot_go_on_ends_and_tells_everybody(lm, version, monkeypatch, place):
    import foreword.serving.classification as labelling
    from foreword.serving.request_encoding import RequestEncoder

    def ends(*_, **__):
        raise SystemExit("zanzibar")

    lines: list[str] = []
    engine = Engine(lm, ROOM, warn=lines.append)
    if place == "choose":
        monkeypatch.setattr(writing, "choose", lost)
    elif place == "score":
        monkeypatch.setattr(labelling, "score", lost)
    elif place == "labelling":
        monkeypatch.setattr(RequestEncoder, "labelling", ends)
    elif place == "take":
        monkeypatch.setattr(type(engine._labeller.waiting), "take", ends)
    else:
        monkeypatch.setattr(engine._labeller, "step", ends)
    results = []
    with contextlib.suppress(Stopped):  # it may have ended before all was asked
        for _ in range(5):
            results.append(engine.classify([RowRequest(version, "x")] * 3))
            results += texts(engine, version, 1)
    # Some may have been answered before; nothing is left without an answer.
    errors = [one.exception(60) for one in results]
    assert any(isinstance(error, Stopped) for error in errors)
    assert all(error is None or isinstance(error, (Stopped, ModelError)) for error in errors)
    assert engine._ended.wait(60) and engine.failure is not None
    assert "zanzibar" not in engine.failure + "".join(lines), "an error's words may quote what another client asked"
    assert lines == [engine.failure] and "has to be started again" in lines[0]
    for ask in (lambda: engine.classify([RowRequest(version, "x")]), lambda: texts(engine, version, 1)):
        with pytest.raises(Stopped, match=r"has failed \((RuntimeError|SystemExit) at "):
            ask()
    engine.close()


def test_a_server_that_was_asked_to_stop_is_not_one_that_has_failed(lm, version):
    engine = Engine(lm, ROOM)
    engine.close()
    assert engine.ended and engine.failure is None
    with pytest.raises(Busy, match="stopping"):
        engine.classify([RowRequest(version, "x")])


@pytest.fixture
def root(tmp_path, lm):
    return filled(tmp_path / "store", lm)


def test_probes_and_requests_say_that_the_engine_has_failed(lm, root, monkeypatch):
    lines = Lines()
    with server(root, lm) as own, client(own, lines) as http:
        assert (http.get("/ready").status_code, http.get("/health").status_code) == (200, 200)
        monkeypatch.setattr(own.engine._labeller, "step", lost)
        first = http.post("/v1/classify", json=LABEL)
        assert first.status_code == 503 and "RuntimeError at lost" in first.json()["error"]["message"]
        again = [
            http.get("/ready"), http.get("/health"), http.post("/v1/classify", json=LABEL),
            http.post("/v1/completions", json={"model": "two", "prompt": "x", "stream": True}),
        ]  # fmt: skip
        for answer in again:
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 5
            assert "has failed (RuntimeError at lost" in answer.json()["error"]["message"]
        assert http.get("/metrics").status_code == 200


def test_an_engine_that_is_held_is_not_ready_and_after_an_answer_s_time_not_alive(lm, root, monkeypatch):
    gate = threading.Event()
    with server(root, lm, Limits(held=0.3, seconds=1.0)) as own, client(own) as http:
        inner = own.engine._labeller._label
        monkeypatch.setattr(own.engine._labeller, "_label", lambda jobs: gate.wait(60) and inner(jobs))
        assert http.post("/v1/classify", json=LABEL).status_code == 504  # nobody else's fault, and nobody else's wait
        ready, health = http.get("/ready"), http.get("/health")
        assert ready.status_code == 503 and "no progress" in ready.json()["error"]["message"]
        until = time.monotonic() + 30
        while health.status_code == 200 and time.monotonic() < until:
            time.sleep(0.05)
            health = http.get("/health")
        assert health.status_code == 503
        gate.set()
        while http.get("/ready").status_code != 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert (http.get("/ready").status_code, http.get("/health").status_code) == (200, 200)
        assert http.post("/v1/classify", json=LABEL).status_code == 200


def test_an_idle_engine_is_not_held(lm, root):
    with server(root, lm, Limits(held=0.1, seconds=0.2)) as own, client(own) as http:
        assert http.post("/v1/classify", json=LABEL).status_code in (200, 504)
        time.sleep(0.4)
        assert own.engine.held == 0.0 and http.get("/ready").status_code == 200


def test_the_process_ends_with_the_reason_once_it_was_told(lm, root, monkeypatch):
    """Whoever starts it again, by /health or by its exit, finds the same sentence."""
    monkeypatch.setattr(run_module, "LEFT", 1.0)
    told: list[int] = []

    def ready(address: str) -> None:
        def probe() -> None:
            httpx.post(f"{address}/v1/classify", json=LABEL, timeout=60)
            told.append(httpx.get(f"{address}/health", timeout=60).status_code)

        threading.Thread(target=probe, daemon=True).start()

    with server(root, lm) as own:
        monkeypatch.setattr(own.engine._labeller, "step", lost)
        with pytest.raises(EngineFailed, match="RuntimeError at lost"):
            run(own, "127.0.0.1", 0, ready=ready)
    assert told == [503]
    assert torch.is_grad_enabled()
