"""HTTP in front of a real engine. python -m pytest tests/serving/test_app.py"""

import json
import socket
import time
from dataclasses import replace

import pytest

from foreword.models.load import load
from foreword.serving.archive import pack_archive
from foreword.serving.engine import Engine
from foreword.serving.keys import KeyRing
from foreword.serving.protocol import RowRequest, Sampling
from foreword.serving.store import PromptStore
from tests.serving.made import artefact
from tests.serving.running import NAMES, ROOM, Limits, Lines, client, filled, server


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture
def root(tmp_path, lm):
    return filled(tmp_path / "store", lm)


@pytest.fixture
def http(root, lm):
    with server(root, lm) as own, client(own) as made:
        yield made


def upload(tmp_path, lm, form: str = "ahead", **more) -> bytes:
    return pack_archive(artefact(lm, form, **more).save(tmp_path / "up"))


def test_labels_are_the_engine_s(http, root, lm):
    with Engine(lm, ROOM) as engine:
        version = PromptStore.open(root).resolve("beta")
        wanted = engine.classify([RowRequest(version, "fine film"), RowRequest(version, "dull")]).result(60)
    answer = http.post("/v1/classify", json={"model": "beta", "input": ["fine film", {"text": "dull"}]})
    assert answer.status_code == 200
    told = answer.json()
    assert told["model"] == "beta@1"
    assert [one["label"] for one in told["data"]] == [one.label for one in wanted]
    for one, other in zip(told["data"], wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-6)
    assert told["usage"]["total_tokens"] == sum(one.prompt_tokens for one in wanted)


def test_texts_whole_and_streamed_are_the_engine_s(http, root, lm):
    asked = {"model": "two", "prompt": ["a film", "b"], "max_tokens": 9, "temperature": 0, "n": 2, "logprobs": 1}
    with Engine(lm, ROOM) as engine:
        version = PromptStore.open(root).resolve("two")
        sampling = Sampling(max_tokens=9, temperature=0.0)
        wanted = [engine.generate(RowRequest(version, text), sampling).result.result(60) for text in ("a film", "b")]
    whole = http.post("/v1/completions", json=asked).json()
    assert [c["text"] for c in whole["choices"]] == [wanted[i].text for i in (0, 0, 1, 1)]
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2, 3]
    assert len(whole["choices"][0]["logprobs"]["tokens"]) == len(wanted[0].pieces)
    assert whole["usage"]["completion_tokens"] == 2 * sum(len(one.pieces) for one in wanted)
    streamed = {0: "", 1: "", 2: "", 3: ""}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/completions", json={**asked, **stream}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    *chunks, last = map(json.loads, events[:-1])
    for chunk in chunks:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert [streamed[i] for i in range(4)] == [c["text"] for c in whole["choices"]]
    assert last["usage"] == whole["usage"]
    echoed = http.post("/v1/completions", json={**asked, "n": 1, "echo": True, "prompt": "a film"}).json()
    assert echoed["choices"][0]["text"] == "a film" + wanted[0].text
    offsets = echoed["choices"][0]["logprobs"]["text_offset"]  # those of the text come first
    assert offsets[0] == 0 and offsets[-len(wanted[0].pieces)] == len("a film")


ALONE = "foreword-tiny-causal"
WRONG = [
    ("post", "/v1/completions", {}, "model"),
    ("post", "/v1/completions", {"model": "two"}, "prompt"),
    ("post", "/v1/completions", {"model": "two", "prompt": [1, 2]}, "prompt"),
    ("post", "/v1/completions", {"model": "two", "prompt": []}, "empty list"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "fields": {"text": "x"}}, "not both"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "max_tokens": 0}, "max_tokens"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "max_tokens": 10**6}, "allowed"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "max_tokens": 4000}, "no room"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "temperature": 3}, "temperature"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "top_p": 0}, "top_p"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "stop": [""]}, "stop"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "suffix": "y"}, "suffix"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "presence_penalty": 1}, "presence_penalty"),
    ("post", "/v1/completions", {"model": "two", "prompt": "x", "n": 500}, "n"),
    ("post", "/v1/completions", {"model": "two", "prompt": "", "stream": True}, "empty"),
    ("post", "/v1/completions", {"model": "two", "fields": {"other": "x"}}, "lacks text"),
    ("post", "/v1/chat/completions", {"model": "two", "messages": []}, "messages"),
    ("post", "/v1/chat/completions", {"model": "two", "messages": [{"role": "robot", "content": "x"}]}, "role"),
    ("post", "/v1/chat/completions", {"model": ALONE, "messages": [{"role": "user", "content": "x"}]}, "no chat"),
    ("post", "/v1/classify", {"model": "two", "input": []}, "empty list"),
    ("post", "/v1/classify", {"model": "two", "input": ["x"] * 300}, "300 rows"),
    ("post", "/v1/classify", {"model": "two", "input": "x", "options": ["a", "a"]}, "options"),
    ("post", "/v1/classify", {"model": "foreword-tiny-causal", "input": "x"}, "no labels"),
    ("put", "/v1/prompts/two/aliases/7", {"version": 1}, "version's number"),
    ("put", "/v1/prompts/two/share", {"version": 1, "fraction": 2}, "fraction"),
    ("post", "/v1/prompts/two/rollback", {}, "current before"),
]


@pytest.mark.parametrize(("method", "path", "body", "match"), WRONG)
def test_what_is_wrong_is_told_in_openai_s_shape(http, method, path, body, match):
    answer = http.request(method, path, json=body)
    told = answer.json()["error"]
    assert answer.status_code == 400
    assert {*told} == {"message", "type", "param", "code"}
    assert match in told["message"] or match == told["param"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "two", "prompt": "\\ud800"}', b"[" * 5000]
)
def test_bodies_that_are_no_requests(http, body):
    answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_json_that_is_not_said_to_be_json_is_told_so(http):
    answer = http.post(
        "/v1/classify", content=b'{"model": "two", "input": "x"}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_methods_and_paths_that_are_not_there(http):
    assert http.get("/v1/completions").status_code == 405
    assert http.get("/v1/none").json()["error"]["type"] == "not_found_error"


def test_large_bodies_are_refused_whether_or_not_they_say_how_large(root, lm):
    limits = Limits(body=2000, upload=3000, text=100)
    with server(root, lm, limits) as own, client(own) as http:
        text = json.dumps({"model": "two", "prompt": "x" * 3000}).encode()
        assert http.post("/v1/completions", content=text).status_code == 413
        chunks = (text[i : i + 100] for i in range(0, len(text), 100))
        answer = http.post("/v1/completions", content=chunks)
        assert answer.status_code == 413
        assert "2,000 bytes" in answer.json()["error"]["message"]
        assert http.put("/v1/prompts/new", content=bytes(4000)).status_code == 413
        assert http.post("/v1/completions", json={"model": "two", "prompt": "x" * 200}).status_code == 413
        assert http.post("/v1/classify", json={"model": "two", "input": ["x" * 60] * 2}).status_code == 413
        assert http.post("/v1/classify", json={"model": "two", "input": "fine"}).status_code == 200


def test_prompts_come_change_and_go(http, tmp_path, lm):
    first, second = upload(tmp_path, lm, seed=1), upload(tmp_path, lm, seed=2)
    label = {"model": "new", "input": "a film"}
    assert http.post("/v1/classify", json=label).status_code == 404
    added = http.put("/v1/prompts/new", content=first)
    assert (added.status_code, added.json()["id"]) == (201, "new@1")
    one = http.post("/v1/classify", json=label).json()
    assert http.put("/v1/prompts/new", content=second).json()["id"] == "new@2"
    two = http.post("/v1/classify", json=label).json()
    assert two["model"] == "new@2"
    assert two["data"][0]["probabilities"] != one["data"][0]["probabilities"]
    assert http.post("/v1/classify", json={**label, "model": "new@1"}).json() == one
    assert http.post("/v1/prompts/new/rollback").json()["id"] == "new@1"
    assert http.post("/v1/classify", json=label).json() == one
    assert http.put("/v1/prompts/new/aliases/beta", json={"version": 2}).status_code == 204
    assert http.post("/v1/classify", json={**label, "model": "new@beta"}).json() == two
    assert http.put("/v1/prompts/new/share", json={"version": 2, "fraction": 0.5}).status_code == 204
    seen = {http.post("/v1/classify", json=label).json()["model"] for _ in range(40)}
    assert seen == {"new@1", "new@2"}
    card = http.get("/v1/prompts/new").json()
    assert [v["id"] for v in card["versions"]] == ["new@1", "new@2"]
    assert (card["aliases"], card["share"], card["fields"]) == ({"beta": 2}, {"version": 2, "fraction": 0.5}, ["text"])
    assert http.delete("/v1/prompts/new/versions/2").status_code == 400
    assert http.delete("/v1/prompts/new/share").status_code == 204
    assert http.delete("/v1/prompts/new/aliases/beta").status_code == 204
    assert http.delete("/v1/prompts/new/versions/2").status_code == 204
    assert http.post("/v1/classify", json={**label, "model": "new@2"}).status_code == 404
    assert http.delete("/v1/prompts/new").status_code == 204
    assert http.post("/v1/classify", json=label).status_code == 404
    assert http.delete("/v1/prompts/new").status_code == 404


def test_uploads_that_do_not_fit_change_nothing(http, tmp_path, lm):
    before = http.get("/v1/prompts").json()
    other = load("foreword-tiny")
    foreign = {**artefact(lm, "ahead").fingerprint, "weights": "x"}
    cases = [
        (b"", "empty"), (b"junk", "cannot be read"), (upload(tmp_path, other), "masked"),
        (upload(tmp_path, lm, fingerprint=foreign), "other weights"), (upload(tmp_path, lm, fields=()), "fields"),
    ]  # fmt: skip
    for data, match in cases:
        answer = http.put("/v1/prompts/beta", content=data)
        assert answer.status_code == 400, answer.text
        assert match in answer.json()["error"]["message"]
    assert http.get("/v1/prompts").json() == before
    for name in ("..", ".x", "a b", "%2e%2e", "a%2fb", "x" * 200, "a@2"):
        answer = http.put(f"/v1/prompts/{name}", content=upload(tmp_path, lm))
        assert answer.status_code in (400, 404, 405), name
    assert http.put("/v1/prompts/foreword-tiny-causal", content=upload(tmp_path, lm)).status_code == 409
    assert http.get("/v1/prompts").json() == before


def test_lists_come_in_pages(http):
    names, after = [], ""
    while True:
        page = http.get("/v1/prompts", params={"limit": 3, "after": after}).json()
        names += [one["name"] for one in page["data"]]
        after = page["next"]
        if after is None:
            break
    assert names == sorted(NAMES)
    assert [m["id"] for m in http.get("/v1/models").json()["data"]] == [*sorted(NAMES), "foreword-tiny-causal"]
    found = http.get("/v1/prompts", params={"search": "acme"}).json()["data"]
    assert [one["name"] for one in found] == ["acme-reviews", "acme-words"]


ROUTES = [
    ("post", "/v1/completions", {"model": "NAME", "prompt": "x", "max_tokens": 1}),
    ("post", "/v1/completions", {"model": "NAME@1", "prompt": "x", "max_tokens": 1}),
    ("post", "/v1/completions", {"model": "NAME", "prompt": "x", "stream": True}),
    ("post", "/v1/chat/completions", {"model": "NAME", "messages": [{"role": "user", "content": "x"}]}),
    ("post", "/v1/classify", {"model": "NAME", "input": "x"}),
    ("get", "/v1/models/NAME", None),
    ("get", "/v1/prompts/NAME", None),
    ("delete", "/v1/prompts/NAME", None),
    ("delete", "/v1/prompts/NAME/versions/1", None),
    ("post", "/v1/prompts/NAME/rollback", {}),
    ("put", "/v1/prompts/NAME/aliases/a", {"version": 1}),
    ("put", "/v1/prompts/NAME/share", {"version": 1, "fraction": 0.5}),
    ("delete", "/v1/prompts/NAME/share", None),
]


def test_another_tenant_s_prompts_are_as_if_they_were_not(root, lm):
    """The same bytes for a name that is there and one that is not, of equal length; and both missing from lists."""
    ring = KeyRing.open(root)
    token = ring.add(["acme-*"], ["acme-*"])
    with server(root, lm) as own, client(own, token=token) as http:
        for method, path, body in ROUTES:
            answers = []
            for name in ("beta", "nine"):
                told = json.loads(json.dumps(body).replace("NAME", name))
                answer = http.request(method, path.replace("NAME", name), json=told)
                headers = {k: v for k, v in answer.headers.items() if k not in ("date", "x-request-id")}
                answers.append((answer.status_code, answer.content.replace(name.encode(), b"NAME"), headers))
            assert answers[0] == answers[1], path
            assert answers[0][0] == 404, path
        for name in ("beta", "nine"):
            assert http.put(f"/v1/prompts/{name}", content=b"x").status_code == 403
        assert {one["name"] for one in http.get("/v1/prompts").json()["data"]} == {"acme-reviews", "acme-words"}
        assert {m["id"] for m in http.get("/v1/models").json()["data"]} == {"acme-reviews", "acme-words"}
        assert http.post("/v1/classify", json={"model": "acme-words", "input": "x"}).status_code == 200
        alone = {"model": "foreword-tiny-causal", "prompt": "x"}
        assert http.post("/v1/completions", json=alone).status_code == 404
        assert PromptStore.open(root).names() == sorted(NAMES)


def test_keys_are_asked_for_everywhere_but_at_the_probes(root, lm):
    ring = KeyRing.open(root)
    token = ring.add(["*"], [])
    with server(root, lm) as own, client(own) as http:
        for method, path, body in [*ROUTES, ("get", "/v1/models", None), ("get", "/metrics", None)]:
            for headers in ({}, {"Authorization": "Bearer fw_x_y"}, {"Authorization": token}):
                answer = http.request(method, path.replace("NAME", "beta"), json=body, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/health").status_code == http.get("/ready").status_code == http.get("/").status_code == 200
        own_key = {"Authorization": f"Bearer {token}"}
        assert http.get("/v1/models", headers=own_key).status_code == 200
        assert http.delete("/v1/prompts/beta", headers=own_key).status_code == 404  # it may use, not change
        ring.remove(ring.list()[0].id)
        assert http.get("/v1/models", headers=own_key).status_code == 401


def test_without_keys_other_hosts_and_origins_are_refused(http):
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"Host": "127.0.0.1.evil.example:80"}).status_code == 403
    assert http.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"Origin": "null"}).status_code == 403
    host = f"localhost:{http.base_url.port}"
    assert http.get("/v1/models", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


def test_logs_and_metrics_hold_neither_texts_nor_keys_nor_names(root, lm):
    token = KeyRing.open(root).add(["*"], ["*"])
    lines = Lines()
    secret = "zanzibar"
    with server(root, lm) as own, client(own, lines, token) as http:
        http.post("/v1/classify", json={"model": "beta", "input": f"{secret} film"})
        http.post("/v1/completions", json={"model": "beta", "prompt": secret, "max_tokens": 3, "stop": [secret]})
        http.post("/v1/completions", json={"model": secret, "prompt": secret})
        http.post("/v1/completions", json={"model": "beta", "prompt": [secret, 3]})
        http.get(f"/{secret}?{secret}")
        metrics = http.get("/metrics").text
    unspoken = token.split("_", 2)[2]  # what is drawn may hold the separator itself
    assert secret not in "".join(lines) and token not in "".join(lines) and unspoken not in "".join(lines)
    assert secret not in metrics and "beta" not in metrics
    told = lines.told()
    assert {"time", "request", "method", "route", "status", "seconds", "key"} <= {*told[0]}
    assert (told[0]["prompt"], told[0]["rows"], told[0]["status"]) == ("beta@1", 1, 200)
    assert 'foreword_requests_total{method="POST",route="/v1/classify",status="200"} 1.0' in metrics
    assert "foreword_rows_classified_total 1.0" in metrics


def test_failures_inside_are_told_without_what_was_asked(root, lm, monkeypatch):
    lines = Lines()
    with server(root, lm) as own, client(own, lines) as http:

        def fails(*_):
            raise ValueError("zanzibar")

        monkeypatch.setattr(own.engine, "classify", fails)
        answer = http.post("/v1/classify", json={"model": "beta", "input": "x"})
    assert answer.status_code == 500
    assert "zanzibar" not in answer.text + "".join(lines)
    assert "ValueError at fails" in str(lines.told()[-1]["failed"])


def test_an_answer_that_takes_too_long_is_given_up(root, lm):
    with server(root, lm, Limits(seconds=0.05), replace(ROOM, rows=1)) as own, client(own) as http:
        asked = {"model": "two", "prompt": ["x"] * 8, "max_tokens": 400}
        answer = http.post("/v1/completions", json=asked)
        assert answer.status_code == 504
        until = time.monotonic() + 20
        while own.engine.load().generating + own.engine.load().waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert own.engine.load().generating + own.engine.load().waiting == 0
        with http.stream("POST", "/v1/completions", json={**asked, "prompt": "x", "stream": True}) as streamed:
            events = "".join(streamed.iter_text())
        if streamed.status_code == 200:
            assert "event: error" in events and "[DONE]" not in events
        else:
            assert streamed.status_code == 504


def test_who_goes_away_in_mid_stream_gives_the_place_away(root, lm):
    with server(root, lm, room=replace(ROOM, rows=1)) as own, client(own) as http:
        body = json.dumps({"model": "two", "prompt": "x", "max_tokens": 480, "n": 4, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", http.base_url.port)) as raw:
            raw.sendall(head.encode() + body)
            assert b"200 OK" in raw.recv(1000)
        until = time.monotonic() + 20
        while own.engine.load().generating + own.engine.load().waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert own.engine.load().generating + own.engine.load().waiting == 0
        assert own.engine.load().pieces_generated < 4 * 480
        until = time.monotonic() + 20
        while own.active and time.monotonic() < until:
            time.sleep(0.01)
        assert own.active == 0
        assert http.post("/v1/classify", json={"model": "two", "input": "x"}).status_code == 200


def test_a_server_that_stops_takes_nothing_more(root, lm):
    with server(root, lm) as own, client(own) as http:
        assert http.get("/ready").json() == {"status": "ready"}
        own.draining = True
        assert http.get("/ready").status_code == 503
        answer = http.post("/v1/classify", json={"model": "two", "input": "x"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert http.get("/health").status_code == 200


def test_the_page_loads_nothing_from_elsewhere(http):
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    for path in ("/page/page.js", "/page/page.css", "/page/icon.svg"):
        assert path in page.text
        assert http.get(path).status_code == 200
    whole = page.text + http.get("/page/page.js").text + http.get("/page/page.css").text
    assert "http://" not in whole and "https://" not in whole
    assert "innerHTML" not in whole and "<script>" not in whole and "style=" not in page.text
    for path in ("/page/main.py", "/page/..%2fmain.py", "/page/../main.py"):
        assert http.get(path).status_code == 404


def test_ten_thousand_names_are_listed_in_a_moment(lm, tmp_path):
    """No record is read for a list."""
    import shutil

    source = artefact(lm, "ahead").save(tmp_path / "one")
    for number in range(300):
        shutil.copytree(source, tmp_path / "store" / "artefacts" / f"t{number}")
    with server(tmp_path / "store", lm) as own, client(own) as http:
        shutil.rmtree(tmp_path / "store" / "served" / "names" / "t7" / "1")
        assert len(http.get("/v1/models").json()["data"]) == 301
        assert len(http.get("/v1/prompts", params={"limit": 1000}).json()["data"]) == 300
        damaged = [http.post("/v1/classify", json={"model": "t7", "input": "x"}), http.get("/v1/prompts/t7")]
        for answer in damaged:  # no fault of the request, and no folder's name
            assert answer.status_code == 500 and str(tmp_path) not in answer.text and "t7@1" in answer.text


def test_hosts_that_others_reach_need_keys(root, lm):
    from foreword.errors import ConfigError
    from foreword.serving.run import require_loopback

    with server(root, lm) as own:
        for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
            with pytest.raises(ConfigError, match="there are no keys"):
                require_loopback(host, own.keys)
        for host in ("127.0.0.1", "localhost", "::1"):
            require_loopback(host, own.keys)
        KeyRing.open(root).add(["*"])
        require_loopback("0.0.0.0", own.keys)
