"""python -m pytest tests/training/test_answer_log.py"""

import json
import random

import pytest

from foreword.errors import ArtefactError
from foreword.training import answer_log
from foreword.training.answer_log import AnswerLog, key_of


def test_what_was_kept_is_there_after_any_kill(tmp_path):
    """Cut at every byte, the file gives what was whole, and goes on."""
    file = tmp_path / "ledger.jsonl"
    ledger = AnswerLog.open(file, "r", resume=False)
    ledger.put({"a": 1.5, "b": "täxt\u2028\n"})
    ledger.reserve("c/1", 50)
    ledger.settle("c/1", 20, {"c": [1, 2]})
    ledger.reserve("d/2", 30)
    assert ledger.spent == 50
    data = file.read_bytes()
    for end in range(0, len(data) + 1, 3):
        file.write_bytes(data[:end])
        again = AnswerLog.open(file, "r", resume=True)
        for key, answer in {"a": 1.5, "b": "täxt\u2028\n", "c": [1, 2]}.items():
            assert again.get(key) in (None, answer)
        assert again.spent <= 80
        again.put({"e": 2})
        assert AnswerLog.open(file, "r", resume=True).get("e") == 2
    assert again.get("c") == [1, 2]


def test_another_search_is_refused_and_a_new_one_starts_empty(tmp_path):
    file = tmp_path / "ledger.jsonl"
    AnswerLog.open(file, "one", resume=False).put({"a": 1})
    with pytest.raises(ArtefactError, match="another search"):
        AnswerLog.open(file, "two", resume=True)
    assert AnswerLog.open(file, "two", resume=False).get("a") is None
    file.write_bytes(b"[1]\n{}\n")
    with pytest.raises(ArtefactError, match="not the ledger"):
        AnswerLog.open(file, "two", resume=True)
    file.write_bytes(b"{{\n")
    with pytest.raises(ArtefactError, match="damaged"):
        AnswerLog.open(file, "two", resume=True)


def test_keys_are_of_the_whole_question():
    rng = random.Random(0)
    parts = [["a", 1], ["a", "1"], ["a1"], [["a", 1]], ["a", 1, None], [{"a": 1, "b": 2}], [{"a": 1}], ["\ud800"]]
    assert len({key_of(*p) for p in parts}) == len(parts)
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of(rng.random()) != key_of(rng.random())


def test_a_log_with_the_tokens_of_calls_apart_is_read(tmp_path):
    """As searches of before wrote them, whose answers were paid for."""
    file = tmp_path / "old.jsonl"
    lines = [{"search": "r"}, {"call": "c/1", "tokens": 50}, {"call": "c/1", "tokens": 20}, {"key": "c", "answer": "x"}]
    lines.append({"call": "d/2", "tokens": 30})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = AnswerLog.open(file, "r", resume=True)
    assert (log.get("c"), log.spent, log.calls) == ("x", 50, 2)
    log.settle("d/2", 10, {"d": "y"})
    again = AnswerLog.open(file, "r", resume=True)
    assert (again.get("c"), again.get("d"), again.spent, again.calls) == ("x", "y", 30, 2)


def test_what_is_replaced_takes_no_more_room_than_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_log, "SPARE", 1000)
    file = tmp_path / "state.jsonl"
    log = AnswerLog.open(file, "r", resume=False)
    for step in range(300):
        log.put({"search": {"step": step, "text": "x" * (step % 50)}, **({f"kept {step}": step} if step < 20 else {})})
        assert file.stat().st_size < 5000
        if step % 60 == 59:  # killed, and begun again
            log = AnswerLog.open(file, "r", resume=True)
            assert log.get("search")["step"] == step
            assert [log.get(f"kept {n}") for n in range(20)] == [*range(20)]
    with pytest.raises(ArtefactError, match="another search"):
        AnswerLog.open(file, "other", resume=True)
