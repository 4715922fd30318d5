"""One request neither holds the others up nor fills memory. python -m pytest tests/serving/test_bounds.py"""

import asyncio
import gc
import json
import random
import threading
import tracemalloc
from concurrent.futures import Future
from dataclasses import asdict, replace

import numpy as np
import pytest

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.recent import Recent
from foreword.core.template import Template
from foreword.errors import ArtefactError, ConfigError
from foreword.models.encoding import label_layout
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.encoding.label_layout import LabelPlan
from foreword.models.load import load
from foreword.serving import classification
from foreword.serving.app import error_responses
from foreword.serving.app.text_responses import TextRequest, TextStreams
from foreword.serving.archive import pack_archive
from foreword.serving.bank import PromptBank
from foreword.serving.classification import WaitingRows
from foreword.serving.engine import Engine
from foreword.serving.jobs import Judging, Labelling
from foreword.serving.jobs import TextJob as WritingJob
from foreword.serving.protocol import Generated, Piece, RowRequest, Sampling
from tests.serving.made import artefact, saved
from tests.serving.running import ROOM, client, filled, server

MANY = 20_000  # of what may be said once or a few times; each made an error of its own
ALONE = "foreword-tiny-causal"


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture(scope="module")
def http(lm, tmp_path_factory):
    root = filled(tmp_path_factory.mktemp("bounds") / "store", lm)
    hard(lm, ()).save(root / "artefacts" / "open")
    with server(root, lm, room=replace(ROOM, work=4000)) as own, client(own) as made:
        yield made


def hard(lm, words, template: str = "{text|shorten} It was {answer}") -> Artefact:
    """A prompt of words alone; each label has one word or more, or rows bring their options."""
    names = tuple(f"label {n}" for n in range(len(words)))
    return Artefact(
        value=HardPrompt.empty(), format=Format(Template.parse(template), names, words),
        method="manual", config={}, seed=0, model={"name": lm.name, "kind": lm.kind},
        fingerprint=asdict(lm.fingerprint()), fields=("text",),
    )  # fmt: skip


def listed(item: str, count: int = MANY) -> str:
    return "[" + ",".join([item] * count) + "]"


def keyed(value: str, count: int = MANY) -> str:
    return "{" + ",".join(f'"k{n}":{value}' for n in range(count)) + "}"


USER = '[{"role":"user","content":"a"}]'
FLOODS = {
    "rows that are numbers": ("classify", f'"input":{listed("1")}'),
    "rows of wrong fields": ("classify", f'"input":{listed(chr(123) + chr(34) + "a" + chr(34) + ":1}", 9000)}'),
    "fields that are numbers": ("classify", f'"input":{keyed("1")}'),
    "rows of too many fields": ("classify", f'"input":[{keyed(chr(34) * 2)}]'),
    "options that are numbers": ("classify", f'"input":"x","options":{listed("1", 9000)}'),
    "options": ("classify", f'"input":"x","options":{listed(chr(34) + "a" + chr(34))}'),
    "keys": ("completions", keyed("1")[1:-1]),
    "texts": ("completions", f'"prompt":{listed(chr(34) + "a" + chr(34))}'),
    "texts that are numbers": ("completions", f'"prompt":["a",{listed("1.5", 9000)[1:]}'),
    "stop strings": ("completions", f'"prompt":"a","stop":{listed("1")}'),
    "a stop string": ("completions", f'"prompt":"a","stop":"{"q" * 10**5}"'),
    "biases": ("completions", f'"prompt":"a","logit_bias":{keyed(chr(34) * 2)}'),
    "messages": ("chat/completions", f'"messages":{listed(chr(123) + chr(125))}'),
    "wrong messages": ("chat/completions", f'"messages":{listed(chr(123) + chr(125), 9000)}'),
    "parts": ("chat/completions", f'"messages":[{{"role":"user","content":{listed(chr(123) + chr(125))}}}]'),
    "keys of messages": ("chat/completions", f'"messages":[{keyed("1")}]'),
    "metadata": ("chat/completions", f'"messages":{USER},"metadata":{keyed("1")}'),
    "tools": ("chat/completions", f'"messages":{USER},"tools":{listed("1")}'),
    "a long key": ("completions", f'"prompt":"a","{"k" * 10**5}":1'),
}


@pytest.mark.parametrize("what", FLOODS)
def test_what_is_wrong_many_times_is_told_once(http, what, monkeypatch):
    """No more errors are made than anybody reads, which is what took the time and the memory."""
    counts = []
    of = error_responses._deepest

    def counted(error):
        counts.append(len(error.errors()))
        return of(error)

    monkeypatch.setattr(error_responses, "_deepest", counted)
    route, body = FLOODS[what]
    model = "" if what == "keys" else f'"model":"{ALONE}",'
    answer = http.post(
        f"/v1/{route}", content=f"{{{model}{body}}}".encode(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text[:300]
    assert 0 < counts[0] < 100
    told = answer.json()["error"]
    assert len(answer.content) < 3000 and told["message"].endswith(".") and "None" not in told["message"]


def test_what_is_allowed_is_still_taken(http):
    """Sixteen stop strings, and unread options of the usual sizes: the bounds could be too narrow."""
    stop = [chr(97 + n) * 1000 for n in range(16)]
    told = {"metadata": {f"k{n}": "v" * 500 for n in range(16)}, "user": "u" * 1000}
    answer = http.post("/v1/completions", json={"model": ALONE, "prompt": "a", "max_tokens": 1, "stop": stop})
    assert answer.status_code == 200
    chat = http.post(
        "/v1/chat/completions", json={"model": "two", "messages": json.loads(USER), "max_tokens": 1, **told}
    )
    assert chat.status_code == 200


NUMBERS = ["1" + "0" * 400, "-1" + "0" * 400, "1e400", "-1e400", "NaN", "Infinity", "1" * 5000]
OPTIONS = [
    "max_tokens",
    "seed",
    "n",
    "top_k",
    "logprobs",
    "temperature",
    "top_p",
    "presence_penalty",
    "best_of",
    "stream",
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:9])
def test_numbers_beyond_all_use_are_refused(http, number):
    for name in OPTIONS:
        body = f'{{"model":"{ALONE}","prompt":"a","max_tokens":1,"{name}":{number}}}'
        answer = http.post("/v1/completions", content=body.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (name, answer.text[:300])
        assert len(answer.json()["error"]["message"]) < 300
    for method, path, body in (
        ("POST", "/v1/completions", f'{{"model":"two","prompt":"a","logit_bias":{{"5":{number}}}}}'),
        ("PUT", "/v1/prompts/two/share", f'{{"version":1,"fraction":{number}}}'),
        ("PUT", "/v1/prompts/two/aliases/x", f'{{"version":{number}}}'),
        ("POST", "/v1/prompts/two/rollback", f'{{"to":{number}}}'),
    ):
        answer = http.request(method, path, content=body.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (path, answer.text[:300])


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_the_smallest_numbers_are_greedy(http, name):
    asked = {"model": ALONE, "prompt": "a", "max_tokens": 4}
    wanted = http.post("/v1/completions", json={**asked, "temperature": 0}).json()["choices"][0]["text"]
    assert http.post("/v1/completions", json={**asked, name: 1e-320}).json()["choices"][0]["text"] == wanted


def test_rows_that_cost_too_much_together_are_refused_before_they_wait(http):
    options = [f"{n} " + "long option " * 3 for n in range(40)]
    asked = {"model": "open", "input": ["a", "b", "c"], "options": options}
    answer = http.post("/v1/classify", json=asked)
    assert answer.status_code == 400
    assert "tokens" in answer.json()["error"]["message"] and "4,000" in answer.json()["error"]["message"]
    assert http.post("/v1/classify", json={**asked, "input": "a"}).status_code == 200


def test_log_probabilities_that_are_too_many_are_refused_before_they_wait(http):
    """A request of 150 bytes would else have an answer of gigabytes."""
    many = {"model": ALONE, "max_tokens": 4000, "n": 64}
    asked = (
        ("completions", {**many, "prompt": "a", "logprobs": 20}),
        ("completions", {**many, "prompt": "a" * 4000, "max_tokens": 0, "echo": True, "logprobs": 20}),
        ("completions", {**many, "prompt": ["é" * 1000] * 20, "n": 10, "max_tokens": 0, "echo": True, "logprobs": 5}),
        ("chat/completions", {**many, "messages": json.loads(USER), "logprobs": True, "top_logprobs": 20}),
    )
    for path, body in asked:
        refused = http.post(f"/v1/{path}", json=body)
        assert refused.status_code == 400 and "log-probabilities" in refused.json()["error"]["message"], body
        assert refused.json()["error"]["param"] == "logprobs"
    few = {**many, "prompt": "a", "max_tokens": 2, "logprobs": 20, "temperature": 0}
    answer = http.post("/v1/completions", json=few)
    assert answer.status_code == 200 and [choice["index"] for choice in answer.json()["choices"]] == list(range(64))


def test_others_are_served_between_the_texts_of_one_answer(lm, tmp_path, monkeypatch):
    count, turns = 50, 0
    piece = Piece("é", -1.0, (("é", -1.0),))
    wanted = TextRequest(ALONE, [RowRequest(None, "a")], [Sampling(10, logprobs=1)] * count, [], False, False, False)

    def ended(row, sampling, *_) -> WritingJob:
        job = WritingJob(Future(), sampling, None)
        job.result.set_result(Generated("é" * 10, (piece,) * 10, "stop", 3))
        return job

    async def counted(own) -> bytes:
        nonlocal turns
        task = asyncio.create_task(TextStreams(own, wanted, asyncio.get_running_loop()).whole())
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        return task.result()

    with server(filled(tmp_path, lm), lm) as own:
        monkeypatch.setattr(own.engine, "generate", ended)
        body = json.loads(asyncio.run(counted(own)))
    assert [choice["text"] for choice in body["choices"]] == ["é" * 10] * count
    assert body["usage"]["completion_tokens"] == 10 * count
    assert turns >= count


def test_uploads_of_label_words_that_cost_too_much_are_refused(http, lm, tmp_path):
    rng = random.Random(5)
    long = tuple(("".join(rng.choices("bcdfgh", k=14)),) for _ in range(100))
    answer = http.put("/v1/prompts/heavy", content=pack_archive(hard(lm, long).save(tmp_path / "heavy")))
    assert answer.status_code == 400
    assert "label words" in answer.json()["error"]["message"] and "--max-work" in answer.json()["error"]["message"]
    light = hard(lm, long[:40])
    assert http.put("/v1/prompts/light", content=pack_archive(light.save(tmp_path / "light"))).status_code == 201


def test_a_thousand_labels_are_served_by_default(lm):
    words = tuple((f"label{n}", f"name{n}") for n in range(1000))
    PromptBank(lm, 2**26, 2**20).check(hard(lm, words))
    longer = tuple((f"{n}" + "x" * (n % 50) + "y" * 60,) for n in range(1000))
    with pytest.raises(ArtefactError, match="label words"):
        PromptBank(lm, 2**26, 2**20).check(hard(lm, longer))


def test_label_words_in_parts_have_the_engine_s_answers(lm, tmp_path, monkeypatch):
    """Through the engine, beside rows of other prompts, as they are whole."""
    rng = random.Random(8)
    version = saved(tmp_path, "parts", hard(lm, tuple(("".join(rng.choices("abc", k=6)), f"w{n}") for n in range(30))))
    other = saved(tmp_path, "other", artefact(lm, "ahead"))
    asked = [
        RowRequest(version, "a fine film"),
        RowRequest(other, "dull"),
        RowRequest(version, "b"),
        RowRequest(other, "c"),
    ]
    with Engine(lm, ROOM) as engine:
        wanted = engine.classify(asked).result(60)
        assert engine.load().batches == 1
    for name, value in {"COLUMNS": 9, "CELLS": 300, "TABLE": 60, "FEW": 0}.items():
        monkeypatch.setattr(label_layout, name, value)
    with Engine(lm, ROOM) as engine:
        found = engine.classify(asked).result(60)
        assert engine.bank.entry(version).labels.plan.parts() is not None
    for one, same in zip(found, wanted, strict=True):
        assert one.label == same.label and one.probabilities == pytest.approx(same.probabilities, abs=1e-6)


def queued(turns: WaitingRows, entry, rows: int, cost: int) -> Judging:
    of = Judging(Future(), [None] * rows, rows)
    row = Encoded(np.zeros(cost, np.int64), np.full(cost, -1, np.int64), cost - 1, None)
    for index in range(rows):
        turns.append(Labelling(of, index, entry, row, ()))
    return of


def test_requests_take_turns(lm, tmp_path):
    """A row that comes while many wait is in the next pass, whatever came before; the many go on all the same."""
    turns, entry = WaitingRows(), PromptBank(lm, 2**20, 2**20).entry(saved(tmp_path, "p", artefact(lm, "ahead")))
    many = queued(turns, entry, 256, 100)
    assert [unit.job.of for unit in turns.take(250)] == [many, many]
    for _ in range(2):  # whichever pass it comes after
        turns.take(250)
        one = queued(turns, entry, 1, 240)
        assert [unit.job.of for unit in turns.take(250)] == [one]
    for _ in range(20):
        queued(turns, entry, 1, 240)
    seen, passes, short = [], 0, 0
    while short < 20 and passes < 100:
        units = turns.take(250)
        short += sum(unit.job.of is not many for unit in units)
        seen.append([unit.job.of is many for unit in units])
        passes += 1
    assert any(any(one) for one in seen) and passes < 60  # neither starves
    left = len(turns)
    assert left < 252
    many.result.cancel()
    assert turns.take(250) == [] and not turns


def test_one_row_is_read_in_the_pass_that_follows(lm, tmp_path, monkeypatch):
    """While a long request is read, a short one waits for the pass under way and for its own."""
    passes, held, go = [], threading.Event(), threading.Event()
    of = classification.Labeller._label

    def watched(self, units):
        passes.append([unit.job.of for unit in units])
        if len(passes) == 3:
            held.set()
            assert go.wait(60)
        of(self, units)

    monkeypatch.setattr(classification.Labeller, "_label", watched)
    version = saved(tmp_path, "p", artefact(lm, "ahead"))
    with Engine(lm, replace(ROOM, waiting=4096)) as engine:
        many = engine.classify([RowRequest(version, "a long text " * 10)] * 200)
        assert held.wait(60)
        one = engine.classify([RowRequest(version, "b")])
        while not engine._jobs.qsize():
            pass
        before = len(passes)
        go.set()
        one.result(60)
        assert len(passes) - before <= 3 and not many.done()
        many.result(60)
    assert len(passes) > 20


def test_options_of_rows_are_not_kept(lm, tmp_path):
    version = saved(tmp_path, "open", hard(lm, ()))
    with Engine(lm, ROOM) as engine:
        for n in range(40):
            engine.classify([RowRequest(version, "a", options=(f"yes {n}", f"no {n}"))]).result(60)
        gc.collect()
        alive = [
            one for one in gc.get_objects() if type(one) is LabelPlan and one.labels == 2 and len(one.words[0][0]) > 4
        ]
    assert len(alive) < 5


def test_memory_counts_what_prompts_hold(lm, tmp_path):
    """Against what Python's own allocations grew by, for label words many, few and shared."""
    for name, count, each, prompts in (("many", 60, 2, 2), ("few", 2, 1, 8), ("shared", 30, 2, 6)):
        versions = []
        for n in range(prompts):
            mark = "" if name == "shared" else str(n)
            words = tuple(tuple(f"word{mark}x{c}x{w}" for w in range(each)) for c in range(count))
            versions.append(saved(tmp_path, f"{name}{n}", hard(lm, words)))
        bank = PromptBank(lm, 2**28, 2**20)
        bank.entry(saved(tmp_path, f"{name}-first", artefact(lm, "ahead")))
        gc.collect()
        tracemalloc.start()
        base, before = bank.counts()["bytes_in_memory"], tracemalloc.get_traced_memory()[0]
        for version in versions:
            bank.entry(version)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        counted = bank.counts()["bytes_in_memory"] - base
        assert grown / 2 < counted < 2 * grown, (name, counted, grown)


def test_encoders_go_with_the_prompts_that_have_them(lm, tmp_path):
    """The limit holds for all that prompts in memory hold: what was let go of is gone."""
    bank = PromptBank(lm, 300_000, 2**20)
    gc.collect()
    before = sum(type(one) is Encoder for one in gc.get_objects())
    for n in range(25):
        words = tuple((f"word{n}x{c}",) for c in range(20))
        bank.entry(saved(tmp_path, f"p{n}", hard(lm, words, f"No. {n}: {{text|shorten}} {{answer}}")))
        assert bank.counts()["bytes_in_memory"] <= 300_000
    gc.collect()
    alive = sum(type(one) is Encoder for one in gc.get_objects()) - before
    held = bank.counts()["prompts_in_memory"]
    assert 0 < held < 20 and alive <= 2 * held


def test_parts_that_values_share_count_once():
    recent: Recent[int, str] = Recent(100)
    part = object()
    for key in range(4):
        recent.put(key, "v", 10, [(part, 40)])
    assert recent.bytes == 80
    recent.put(4, "v", 30)
    assert len(recent) == 4 and recent.bytes == 100 and recent.get(0) is None
    for key in (1, 2, 3):
        recent.drop(key)
    assert recent.bytes == 30 and recent.get(4) == "v"


def test_a_request_may_not_ask_for_an_answer_without_end(lm, tmp_path, monkeypatch):
    from foreword.serving import request_encoding

    monkeypatch.setattr(request_encoding, "ANSWER", 500)
    version = saved(tmp_path, "p", artefact(lm, "ahead"))
    with Engine(lm, ROOM) as engine:
        engine.classify([RowRequest(version, "a")] * 5).result(60)
        with pytest.raises(ConfigError, match="send fewer rows"):
            engine.classify([RowRequest(version, "a")] * 50).result(60)
