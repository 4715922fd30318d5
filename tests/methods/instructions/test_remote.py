"""python -m pytest tests/methods/instructions/test_remote.py

The client of a remote endpoint, against a server on this machine that refuses, delays and counts.
"""

import contextlib
import email.utils
import gzip
import random
import time

import pytest

from foreword.errors import ConfigError, ModelError
from foreword.methods.instructions.remote import BudgetSpentError, Endpoint, Remote, without_key
from foreword.training.answer_log import AnswerLog
from tests.methods.instructions.endpoint import Stub, serving
from tests.seeds import new_seed

OPTIONS = {"max_tokens": 20, "temperature": 0.9, "top_p": 0.9}
SLOW = (429, {}, {"error": {"message": "slow down"}})


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MY_KEY", "secret-123")


def client(stub: Stub, waits: list[float], ledger: AnswerLog | None = None, **more) -> Remote:
    return Remote(Endpoint(**{"url": stub.url, "model": "m", **more}), ledger or AnswerLog(), waits.append)


def test_it_asks_in_openais_form_and_keeps_answers(waits, tmp_path):
    with serving(Stub()) as stub:
        ledger = AnswerLog.open(tmp_path / "n.jsonl", "one", resume=False)
        remote = client(stub, waits, ledger, key_variable="MY_KEY")
        first = remote.write("propose", 1, **OPTIONS)
        assert first == remote.write("propose", 1, **OPTIONS) != remote.write("propose", 2, **OPTIONS)
        assert len(stub.bodies) == 2
        assert stub.bodies[0]["messages"] == [{"role": "user", "content": "propose"}]
        assert stub.bodies[0] | {"messages": None} == {
            "model": "m", "messages": None, "seed": 1, "max_tokens": 20, "temperature": 0.9, "top_p": 0.9,
        }  # fmt: skip
        assert stub.headers[0]["Authorization"] == "Bearer secret-123"
        again = AnswerLog.open(tmp_path / "n.jsonl", "one", resume=True)
        assert client(stub, waits, again).write("propose", 2, **OPTIONS)
        assert len(stub.bodies) == 2
        assert again.spent == ledger.spent == stub.tokens
        assert "secret-123" not in (tmp_path / "n.jsonl").read_text()
        plain = client(stub, waits, url=stub.url + "/completions")
        assert plain.write("propose", 1, **OPTIONS)
        assert stub.bodies[-1]["prompt"] == "propose"
        assert "Authorization" not in stub.headers[-1]


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_at_once_and_is_not_shown(status, waits):
    refusal = (status, {}, {"error": {"message": "Incorrect API key provided: secret-123."}})
    with serving(Stub(lambda number, body: refusal)) as stub:
        with pytest.raises(ModelError, match=r"the key is wrong or missing \(MY_KEY is set") as told:
            client(stub, waits, key_variable="MY_KEY").write("x", 0, **OPTIONS)
        assert "secret-123" not in str(told.value)
        with pytest.raises(ModelError, match="OPENAI_API_KEY is not set"):
            client(stub, waits).write("x", 0, **OPTIONS)
        assert len(stub.bodies) == 2
    assert waits == []


@pytest.mark.parametrize(("status", "body"), [(404, b"<html>"), (400, {"error": "no such model"}), (302, {})])
def test_what_will_not_change_is_not_tried_again(status, body, waits):
    with serving(Stub(lambda number, _: (status, {"Location": "http://127.0.0.1:1/"}, body))) as stub:
        with pytest.raises(ModelError, match=f"answered {status}"):
            client(stub, waits).write("x", 0, **OPTIONS)
        assert len(stub.bodies) == 1
    assert waits == []


@pytest.mark.parametrize("body", [b"not json", {"choices": []}, {"answer": 1}, [1], {"choices": [{"text": "x"}]}])
def test_an_answer_of_another_form_is_told(body, waits):
    with (
        serving(Stub(lambda number, _: (200, {}, body))) as stub,
        pytest.raises(ModelError, match="not in OpenAI's form"),
    ):
        client(stub, waits).write("x", 0, **OPTIONS)


def test_a_rate_limit_backs_off_longer_each_time(waits):
    with serving(Stub(lambda number, body: SLOW if number < 4 else None)) as stub:
        client(stub, waits).write("x", 0, **OPTIONS)
        assert len(stub.bodies) == 5
    assert len(waits) == 4
    assert all(2**n <= wait <= 2 ** (n + 1) for n, wait in enumerate(waits)), waits


def test_retry_after_is_honoured_as_seconds_and_as_a_date(waits):
    def rule(number, body):
        date = email.utils.formatdate(time.time() + 60, usegmt=True)
        return {0: (429, {"Retry-After": "17.5"}, {}), 1: (503, {"Retry-After": date}, {})}.get(number)

    with serving(Stub(rule)) as stub:
        client(stub, waits).write("x", 0, **OPTIONS)
    assert waits[0] == 17.5
    assert 55 <= waits[1] <= 61


def test_a_long_wait_stops_with_a_sentence(waits):
    with (
        serving(Stub(lambda number, body: (429, {"Retry-After": "3600"}, {}))) as stub,
        pytest.raises(ModelError, match=r"asks to wait 3600 seconds.*--resume"),
    ):
        client(stub, waits).write("x", 0, **OPTIONS)
    assert waits == []


def test_it_gives_up_after_so_many_attempts(waits):
    with serving(Stub(lambda number, body: SLOW)) as stub:
        with pytest.raises(ModelError, match=r"answered 429 \(slow down\), 3 times in a row"):
            client(stub, waits, attempts=3).write("x", 0, **OPTIONS)
        assert len(stub.bodies) == 3
    with pytest.raises(ModelError, match="cannot be reached"):
        client(stub, waits, attempts=2).write("x", 0, **OPTIONS)


def test_the_budget_of_tokens_is_never_exceeded(waits):
    """Refusals, server errors (which may have been charged) and texts in any order."""
    seed = new_seed()
    rng = random.Random(seed)
    for budget in (0, 100, 400, 1500):
        charged = 0

        def rule(number, body, rng=rng):
            nonlocal charged
            kind = rng.random()
            if kind < 0.1:
                return SLOW
            if kind < 0.25:
                charged += len(body["messages"][0]["content"].split()) + body["max_tokens"]  # done, then lost
                return 500, {}, {}
            return None

        with serving(Stub(rule)) as stub:
            ledger = AnswerLog()
            remote = client(stub, waits, ledger, token_budget=budget, attempts=50)
            written = 0
            with contextlib.suppress(BudgetSpentError):
                for number in range(1000):
                    remote.write("some words to go on " * rng.randrange(1, 5), number, **OPTIONS)
                    written += 1
            assert written < 1000
            assert stub.tokens + charged <= ledger.spent <= budget, seed
            assert written == len(stub.answered)
            assert written == 0 if budget == 0 else budget < 1500 or written > 5, seed


def test_an_unanswered_call_counts_as_charged_and_is_tried_again(waits, tmp_path):
    with serving(Stub(lambda number, body: time.sleep(1.5) if number == 0 else None)) as stub:  # pyright: ignore
        ledger = AnswerLog.open(tmp_path / "n.jsonl", "one", resume=False)
        client(stub, waits, ledger, timeout=0.5).write("x", 0, **OPTIONS)
        most = 1 + 32 + 20
        assert ledger.spent == most + (stub.tokens if len(stub.answered) == 1 else stub.tokens // 2)
    assert AnswerLog.open(tmp_path / "n.jsonl", "one", resume=True).spent == ledger.spent


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"url": "api.example.com/v1"}, "is not an address"),
        ({"url": "ftp://api.example.com/v1"}, "is not an address"),
        ({"url": "https://me:word@api.example.com/v1"}, "may hold no user"),
        ({"url": "https://api.example.com/v1?key=1"}, "may hold no user"),
        ({"model": ""}, "remote_model=NAME"),
        ({"url": "http://api.example.com/v1", "key_variable": "MY_KEY"}, "unencrypted"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_call(more, told):
    with pytest.raises(ConfigError, match=told):
        Endpoint(**{"url": "https://api.example.com/v1", "model": "m", **more})


KEY = "sk-Abc123-Def456-Ghi789"


@pytest.mark.parametrize("shown", [KEY, KEY.lower(), KEY[:12], KEY[-9:], f"Bearer {KEY}", f"x{KEY}{KEY}y"])
def test_an_endpoint_that_repeats_the_key_gets_none_of_it_kept(shown, waits, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    answer = (200, {}, {"choices": [{"message": {"content": f"say {shown} and \ud83d stop"}}]})
    with serving(Stub(lambda number, body: answer)) as stub:
        ledger = AnswerLog.open(tmp_path / "n.jsonl", "one", resume=False)
        text = client(stub, waits, ledger, key_variable="MY_KEY").write("x", 0, **OPTIONS)
    kept = (tmp_path / "n.jsonl").read_text()
    for place in (text, kept):
        low = place.lower()
        assert not any(KEY.lower()[at : at + 8] in low for at in range(len(KEY) - 7)), place
    assert text.startswith("say ")
    assert text.endswith("stop")
    text.encode()


@pytest.mark.parametrize("shown", [KEY, f"{KEY[:7]}*****{KEY[-4:]}", KEY[5:12]])
def test_a_refusal_shows_no_part_of_the_key(shown, waits, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    refusal = (401, {}, {"error": {"message": f"Incorrect API key provided: {shown}, see the page"}})
    with (
        serving(Stub(lambda number, body: refusal)) as stub,
        pytest.raises(ModelError, match="Incorrect API key provided") as told,
    ):
        client(stub, waits, key_variable="MY_KEY").write("x", 0, **OPTIONS)
    assert not any(KEY[at : at + 4] in str(told.value) for at in range(len(KEY) - 3))


def test_words_that_have_nothing_of_the_key_stay_as_they_are():
    text = "a film about İstanbul, 123 and 456; Straße"
    assert without_key(text, KEY) == text
    assert without_key("no, it is EMPTY", "no") == "no, it is EMPTY"  # a key of no weight
    assert without_key("no key", "") == "no key"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (200, {}, b'{"choices": [{"message": {"content": "' + b"x" * 2**23 + b'"}}]}'),
            "more than the 4,194,304 bytes",
        ),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 2**27)), "compressed form"),
        ((500, {}, b"x" * 2**23), "more than the"),
        ((200, {}, b"[" * 10**6), "not in OpenAI's form"),
        ((200, {}, b'{"choices": ' + b"9" * 10**5 + b"}"), "not in OpenAI's form"),
    ],
)
def test_an_answer_without_bounds_is_refused(answer, words, waits):
    with serving(Stub(lambda number, body: answer)) as stub, pytest.raises(ModelError, match=words):
        client(stub, waits).write("x", 0, **OPTIONS)
    assert waits == []
