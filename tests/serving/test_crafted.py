"""Records and tensors as nobody writes them, with right hashes: refused in a sentence, or used; never a traceback.

Run: python -m pytest tests/serving/test_crafted.py [--run slow for all of them]
"""

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from foreword.core.artefact import RECORD, TENSORS, Artefact
from foreword.core.demos import Example
from foreword.core.format import Decoding, Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import Template
from foreword.core.values import (
    Ensemble,
    LowRank,
    Member,
    Neighbours,
    Probe,
    PromptPool,
    Tuned,
    Weights,
    WordCounts,
)
from foreword.errors import ForewordError
from foreword.inference.predictor import open_artefact
from foreword.models.load import load
from foreword.serving.archive import read_upload
from foreword.serving.bank import PromptBank
from tests.seeds import new_seed
from tests.serving.made import artefact
from tests.serving.test_archive import tarred

STRANGE: list[Any] = [
    None, True, 0, -1, 3, 2.5, 10**400, -(10**400), 1e308, -1e308, 1e-320, math.nan, math.inf, "", " ", "x", "\ud83d",
    "x" * 5000, "{", "{text}{answer}{answer}", "{soft:9999}{text}", "\0", [], [None], [1], ["x"], ["x", "x"], ["", "x"],
    [[]], [["x"], ["x"]], [["x", None], ["y"]], {}, {"a": 1}, {"a": None}, [{}], [[[[[[["x"]]]]]]],
]  # fmt: skip
GONE = object()


def masked() -> Any:
    return load("foreword-tiny", kind="masked")


def bases() -> dict[str, Artefact]:
    """An artefact of every form, small, for one tiny model."""
    lm = masked()
    width, draw = lm.dims.width, torch.Generator().manual_seed(0)
    words, soft = artefact(lm, "hard"), artefact(lm, "ahead")
    name, matrix = next((n, w) for n, w in lm.named_weights().items() if w.ndim == 2)
    low = LowRank({name: (torch.zeros(2, matrix.shape[1]), torch.zeros(matrix.shape[0], 2))}, 1.0)
    embed = torch.nn.functional.normalize(torch.randn(3, width, generator=draw), dim=1)
    shown = tuple(Example({"text": f"film {n}"}, "good") for n in range(3))
    ids = replace(soft.format, template=Template.parse("{soft:3}{text} It was {mask}."))
    calibrated = replace(words.format, shift=(0.5, -0.5), temperature=1.5, calibration="batch")
    reasoned = replace(words.format, decoding=Decoding(4, temperature=0.7, do_sample=True))
    return {
        "hard": words,
        "calibrated": replace(words, format=calibrated),
        "decoding": replace(words, format=reasoned),
        "ids": replace(soft, value=HardPrompt(torch.tensor([5, 6, 7])), format=ids),
        "soft": soft,
        "prefix": artefact(lm, "prefix"),
        "probe": replace(words, value=Probe(torch.randn(2, width), torch.zeros(2), "answer")),
        "counts": replace(words, value=WordCounts(("a", "b"), torch.ones(2), torch.randn(2, 2), torch.zeros(2))),
        "low-rank": replace(words, value=low),
        "weights": replace(words, value=Weights({name: matrix.detach().clone()})),
        "tuned": replace(soft, value=Tuned(soft.value, Weights({name: matrix.detach().clone()}))),
        "pool": replace(soft, value=PromptPool(torch.randn(2, width), torch.randn(2, 3, width))),
        "neighbours": replace(words, value=Neighbours(shown, embed, 2, "\n", None)),
        "ensemble": replace(
            words, value=Ensemble((Member(words.value, words.format), Member(soft.value, soft.format)), "mean")
        ),
    }


def places(part: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in inner:
        yield from places(value, (*at, key))


def changed(record: Any, at: tuple[Any, ...], value: Any) -> Any:
    record = json.loads(json.dumps(record))
    holder = record
    for key in at[:-1]:
        holder = holder[key]
    if value is GONE:
        del holder[at[-1]]
    else:
        holder[at[-1]] = value
    return record


def tensor_changes(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    for name, tensor in tensors.items():
        for dtype in (torch.float8_e4m3fn, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8):
            yield f"{name} {dtype}", {**tensors, name: tensor.to(dtype)}
        for what, value in {
            "flat": tensor.flatten(), "deeper": tensor[None], "empty": tensor[:0], "longer": torch.cat([tensor] * 2),
            "short": tensor[:1], "scalar": torch.zeros((), dtype=tensor.dtype), "nan": tensor / 0,
            "large": torch.full_like(tensor, 30_000), "wide": torch.cat([tensor] * 2, -1),
        }.items():  # fmt: skip
            yield f"{name} {what}", {**tensors, name: value.to(tensor.dtype).contiguous()}
        yield f"{name} renamed", {**{k: v for k, v in tensors.items() if k != name}, f"x.{name}": tensor}
    yield "one more", {**tensors, "more": torch.zeros(2)}
    yield "none", {}


def packed(record: Any, data: bytes, seal: bool = True) -> dict[str, bytes]:
    """With the hashes that belong to it, whoever made it."""
    record = {k: v for k, v in record.items() if k != "record_sha256"}
    if "tensors_sha256" in record:
        record["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    if seal:
        record["record_sha256"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return {RECORD: json.dumps(record).encode(), TENSORS: data}


def shapes_said(record: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The record with the shapes that the tensors have, where it tells some."""
    value = dict(record["value"])
    told = {"embed": "shape", "values": "shape"}
    for name, key in told.items():
        if key in value and name in tensors:
            value[key] = list(tensors[name].shape)
    if "sites" in value:
        value["sites"] = {s: list(tensors.get(f"{s}.keys", torch.zeros(1)).shape) for s in value["sites"]}
    if "length" in value and "ids" in tensors:
        value["length"] = tensors["ids"].numel()
    return {**record, "value": value}


def trials(folder: Path, draw: random.Random, count: int | None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What is tried: all of it, or so many of each artefact."""
    for form, base in bases().items():
        place = base.save(folder / form)
        record, data = json.loads((place / RECORD).read_bytes()), (place / TENSORS).read_bytes()
        tensors = tensors_of(data)
        todo: list[Any] = [(at, value) for at in places(record) for value in [*STRANGE, GONE]]
        todo += [(None, change) for change in tensor_changes(tensors)]
        for at, value in todo if count is None else draw.sample(todo, count):
            if at is None:
                what, other = value
                told = shapes_said(record, other) if draw.random() < 0.7 else record
                yield f"{form}: {what}", packed(told, bytes_of(other))
            else:
                what = "gone" if value is GONE else repr(value)[:40]
                yield f"{form}: {at} {what}", packed(changed(record, at, value), data, draw.random() < 0.7)


def tracebacks(folder: Path, draw: random.Random, count: int | None) -> tuple[int, int, list[str]]:
    """How many were tried, how many were used, and which ended in anything but a sentence."""
    lm, tried, used, wrong = masked(), 0, 0, []
    bank = PromptBank(lm, 2**20, 2**20)
    for what, contents in trials(folder, draw, count):
        tried += 1
        place = folder / "crafted"
        place.mkdir(exist_ok=True)
        for name, data in contents.items():
            (place / name).write_bytes(data)
        try:
            prompted = open_artefact(place, lm)
            row = dict.fromkeys(prompted.artefact.fields, "a film") or "a film"
            found = prompted.predict([row])[0]
            assert all(math.isfinite(p) for p in found.probabilities.values()), "a probability that is none"
            used += 1
        except ForewordError as error:
            if "\n" in str(error) or len(str(error)) > 20_000:
                wrong.append(f"{what}: local: {str(error)[:200]!r}")
        except Exception as error:
            wrong.append(f"{what}: local: {type(error).__name__}: {str(error)[:150]}")
        try:
            bank.check(read_upload(tarred(contents.items()))[1])
        except ForewordError:
            pass
        except Exception as error:
            wrong.append(f"{what}: upload: {type(error).__name__}: {str(error)[:150]}")
    return tried, used, wrong


def test_a_drawn_part_of_them(tmp_path):
    seed = new_seed(2**32)
    tried, used, wrong = tracebacks(tmp_path, random.Random(seed), 16)
    assert not wrong, f"seed {seed}, {len(wrong)} of {tried}:\n" + "\n".join(wrong[:20])
    assert tried == 14 * 16
    assert used < tried  # the others were refused


@pytest.mark.slow
def test_all_of_them(tmp_path):
    tried, used, wrong = tracebacks(tmp_path, random.Random(0), None)
    print(f"{tried} tried, {used} used, {len(wrong)} tracebacks")
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong[:50])


def test_what_is_left_alone_is_used(tmp_path):
    """Without a change every one of the artefacts above is used, or is not to be predicted with."""
    lm = masked()
    for form, base in bases().items():
        place = base.save(tmp_path / form)
        record, data = json.loads((place / RECORD).read_bytes()), (place / TENSORS).read_bytes()
        for seal in (True, False):  # an artefact of before records had a hash is read too
            made = Artefact.read(packed(record, data, seal), form)
            assert made.format == Format.from_json(record["format"])
        if form not in ("decoding", "pool"):
            assert open_artefact(place, lm).predict(["a film"])[0].label in ("no", "yes"), form
