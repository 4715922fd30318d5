"""The folder of a comparison under kills, full disks and several writers.

Run: python -m pytest tests/evaluation/test_records.py
"""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreword.errors import ArtefactError
from foreword.evaluation.predictions import Scored
from foreword.evaluation.records import Record, Store, Timing, run_id

LOGPROB = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 1e-9]]))
LABEL = np.array([1, 0, 0])


def record(number: int, **changes) -> Record:
    plain = Record(
        id=f"id-{number}",
        role="result",
        model="m",
        kind="masked",
        model_numbers=10,
        fingerprint={"tokenizer": "t", "shape": "s", "weights": "w", "dtype": "float32"},
        task="tâche \u202e",
        synthetic=False,
        labels=2,
        k=None,
        rows={"train": 1, "validation": 1, "test": 3},
        hashes={"train": "a", "validation": "b", "test": "c"},
        format={"template": "{text} \u2028 {mask}"},
        method="manual",
        config={"length": 3},
        seed=number,
        point={},
        tried=1,
        allowed=1,
        development={"accuracy": 0.5, "nll": 0.7},
        metrics={"accuracy": 1 / 3},
        numbers_trained=0,
        bytes_stored=0,
        predictions=None,
        artefact=None,
        environment={"threads": 1},
    )
    return replace(plain, **changes)


def test_records_and_predictions_come_back(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a" / "b")
    one = store.add(record(1, timing=Timing(1.5, 3, None)), Scored(LOGPROB, LABEL))
    two = store.add(record(2))
    assert Store.open(tmp_path / "a" / "b").records() == [one, two]
    logprob_RC, label_R = store.predictions(one)
    np.testing.assert_allclose(logprob_RC, LOGPROB, rtol=1e-6)
    np.testing.assert_array_equal(label_R, LABEL)
    assert store.predictions(two) is None
    lines = (store.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [1, 2]
    assert not any("seconds" in line for line in lines), "clock times would make the bytes differ from run to run"


def test_a_line_torn_anywhere_is_forgotten_and_written_over(tmp_path: Path) -> None:
    whole = Store.open(tmp_path / "whole")
    for number in (1, 2):
        whole.add(record(number))
    data = (whole.folder / "results.jsonl").read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data), 7):
        torn = tmp_path / "torn"
        torn.mkdir(exist_ok=True)
        (torn / "results.jsonl").write_bytes(data[:cut])
        store = Store.open(torn)
        assert [r.id for r in store.records()] == ["id-1"]
        store.add(record(2))
        assert (torn / "results.jsonl").read_bytes() == data


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.add(record(1))
    good = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(good + b'{"id": "' + b"x" * 200_000)
    store.add(record(2))
    assert [r.id for r in store.records()] == ["id-1", "id-2"]
    assert (tmp_path / "results.jsonl").read_bytes().startswith(good)


def test_a_run_added_twice_stands_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for seed in (1, 2, 1):
        store.add(record(seed, metrics={"accuracy": float(seed)}, tried=len(store.records())))
    assert [(r.id, r.tried) for r in store.records()] == [("id-2", 1), ("id-1", 2)]
    store.add(record(1, role="trial"))
    assert len(store.records()) == 3


def test_what_is_not_ours_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"id": "x"}\nnot json\n{"id": "y"}\n')
    with pytest.raises(ArtefactError, match=r"line 2 is not JSON"):
        Store.open(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"id": "x", "role": "result"}\n')
    with pytest.raises(ArtefactError, match=r"line 1 has no 'model'"):
        Store.open(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ArtefactError, match=r"File exists"):
        Store.open(file)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    store.add(record(1), Scored(LOGPROB, LABEL))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for change in ({}, {"timing": Timing(1.0, 1, None)}):
        with pytest.raises(ArtefactError, match=r"No space left on device.*runs finished before are kept"):
            store.add(record(2, **change))
    with pytest.raises(ArtefactError, match=r"No space left"):
        store.add(record(2), Scored(LOGPROB, LABEL))
    monkeypatch.undo()
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "timings.jsonl"}
    assert after == before
    store.add(record(2))
    assert [r.id for r in store.records()] == ["id-1", "id-2"]


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_damaged_predictions_are_as_good_as_none(tmp_path: Path, damage: bytes | None) -> None:
    store = Store.open(tmp_path)
    one = store.add(record(1), Scored(LOGPROB, LABEL))
    file = tmp_path / str(one.predictions)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert store.predictions(one) is None


WRITER = """
import sys
sys.path.insert(0, {here!r})
from tests.evaluation.test_records import record
from foreword.evaluation.predictions import Scored
from foreword.evaluation.records import Store
from pathlib import Path
store = Store(Path({folder!r}))
for number in range(40):
    store.add(record({first} + number, format={{"template": "x" * 9000}}))
"""


def test_writers_at_the_same_time_tear_no_line(tmp_path: Path) -> None:
    here = str(Path(__file__).parents[2])
    codes = [WRITER.format(here=here, folder=str(tmp_path), first=first) for first in (0, 100)]
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=here) for code in codes]
    assert [process.wait(60) for process in running] == [0, 0]
    assert {r.seed for r in Store(tmp_path).records()} == {*range(40), *range(100, 140)}


def test_ids_follow_content_not_order() -> None:
    assert run_id({"a": 1, "b": {"c": 2, "d": 3}}) == run_id({"b": {"d": 3, "c": 2}, "a": 1})
    assert run_id({"a": 1}) != run_id({"a": 1.5})
