"""python -m pytest tests/training/test_answer_log.py"""

import random

import pytest

from foreword.errors import ArtefactError
from foreword.training.answer_log import Ledger, key_of


def test_what_was_kept_is_there_after_any_kill(tmp_path):
    """Cut at every byte, the file gives what was whole, and goes on."""
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(file, "r", resume=False)
    ledger.put({"a": 1.5, "b": "täxt\u2028\n"})
    ledger.reserve("c/1", 50)
    ledger.settle("c/1", 20, {"c": [1, 2]})
    ledger.reserve("d/2", 30)
    assert ledger.spent == 50
    data = file.read_bytes()
    for end in range(0, len(data) + 1, 3):
        file.write_bytes(data[:end])
        again = Ledger.open(file, "r", resume=True)
        for key, answer in {"a": 1.5, "b": "täxt\u2028\n", "c": [1, 2]}.items():
            assert again.get(key) in (None, answer)
        assert again.spent <= 80
        again.put({"e": 2})
        assert Ledger.open(file, "r", resume=True).get("e") == 2
    assert again.get("c") == [1, 2]


def test_another_search_is_refused_and_a_new_one_starts_empty(tmp_path):
    file = tmp_path / "ledger.jsonl"
    Ledger.open(file, "one", resume=False).put({"a": 1})
    with pytest.raises(ArtefactError, match="another search"):
        Ledger.open(file, "two", resume=True)
    assert Ledger.open(file, "two", resume=False).get("a") is None
    file.write_bytes(b"[1]\n{}\n")
    with pytest.raises(ArtefactError, match="not the ledger"):
        Ledger.open(file, "two", resume=True)
    file.write_bytes(b"{{\n")
    with pytest.raises(ArtefactError, match="damaged"):
        Ledger.open(file, "two", resume=True)


def test_keys_are_of_the_whole_question():
    rng = random.Random(0)
    parts = [["a", 1], ["a", "1"], ["a1"], [["a", 1]], ["a", 1, None], [{"a": 1, "b": 2}], [{"a": 1}], ["\ud800"]]
    assert len({key_of(*p) for p in parts}) == len(parts)
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of(rng.random()) != key_of(rng.random())
