"""Check what an artefact's record says: one check for records from a folder and from an upload."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from foreword.core.text import parse_json, shown
from foreword.errors import ArtefactError

DEEPEST = 32  # levels
SEAL = "record_sha256"
PARTS = (
    "schema", "form", "method", "config", "seed", "format", "fields", "model", "fingerprint", "metrics", "hashes",
    "recipe", "parent", "numbers_trained", "trace", "value", "tensors_sha256",
)  # fmt: skip
FREE = ("metrics", "trace", "config", "recipe")  # whose numbers may be NaN or infinite: nothing computes with them


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with a hash of everything in it, as its last part.

    Raises: ArtefactError for characters that no text has.
    """
    plain = {name: value for name, value in record.items() if name != SEAL}
    try:
        json.dumps(plain, ensure_ascii=False).encode()
    except ValueError as error:
        raise ArtefactError(f"The record would hold characters that no text has ({error}).") from None
    return {**plain, SEAL: _digest(plain)}


def parse_record(data: bytes) -> dict[str, Any]:
    """Return a record from its bytes: a JSON object that is not too deep.

    Raises: ArtefactError that says what else the bytes are.
    """
    try:
        record = parse_json(data.decode("utf-8"))
        depth = _depth(record)
    except ValueError as error:
        raise ArtefactError(f"the record cannot be read: {str(error)[:200]}. The artefact is damaged.") from None
    if not isinstance(record, dict):
        raise ArtefactError(f"the record is a {type(record).__name__} and no JSON object.")
    if depth > DEEPEST:
        raise ArtefactError(f"the record is {depth} levels deep; {DEEPEST} are allowed.")
    return record


def check_record(record: Mapping[str, Any]) -> None:
    """Check that each part of a record has the type that the program expects. Raises: ArtefactError."""
    absent = [name for name in PARTS if name not in record and name != "trace"]
    if absent:
        raise ArtefactError(f"the record has no {' and no '.join(absent)}.")
    try:
        json.dumps({name: None if name in FREE else value for name, value in record.items()}, allow_nan=False)
        json.dumps(record, ensure_ascii=False).encode()
    except ValueError as error:
        raise ArtefactError(f"the record has numbers or characters that no text has: {error}.") from None
    model, fingerprint = record["model"], record["fingerprint"]
    rules = {
        "form": (isinstance(record["form"], str), "a text"),
        "method": (isinstance(record["method"], str), "a text"),
        "seed": (is_whole(record["seed"], -(2**63)), "a whole number of 64 bits"),
        "numbers_trained": (is_whole(record["numbers_trained"], 0), "a whole number, 0 or more"),
        "fields": (_are_names(record["fields"]), "a list of different texts"),
        "model": (
            isinstance(model, dict) and are_texts([model.get("name"), model.get("kind")]),
            "an object with a name and a kind",
        ),
        "fingerprint": (
            isinstance(fingerprint, dict) and all(isinstance(v, str) for v in fingerprint.values()),
            "texts by name",
        ),
        "hashes": (
            isinstance(record["hashes"], dict) and all(isinstance(v, str | None) for v in record["hashes"].values()),
            "texts by name",
        ),
        "parent": (isinstance(record["parent"], str | None), "a text or null"),
        **{
            name: (isinstance(record.get(name, {}), dict), "an object")
            for name in ("config", "metrics", "recipe", "trace", "format", "value")
        },
    }
    for name, (right, allowed) in rules.items():
        if not right:
            raise ArtefactError(f"the record has {name} {shown(record.get(name))}; it must be {allowed}.")
    if fingerprint and not {"tokenizer", "shape", "dtype"} <= fingerprint.keys():
        raise ArtefactError("the record has a fingerprint without tokenizer, shape or dtype.")


def check_seal(record: Mapping[str, Any]) -> None:
    """Check that a record was not changed; one from before records had a hash passes. Raises: ArtefactError."""
    if SEAL not in record:
        unknown = sorted(record.keys() - set(PARTS))
        if unknown:
            raise ArtefactError(f"the record has parts that none has: {shown(', '.join(unknown))}.")
        return
    if record[SEAL] != _digest({name: value for name, value in record.items() if name != SEAL}):
        raise ArtefactError("the record was changed after it was written: its hash differs.")


def is_whole(value: object, low: int, high: int = 2**63 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> bool:
    """Return whether it is a finite number in these bounds; a whole one may be beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value <= high if isinstance(value, int) else math.isfinite(value) and low <= value <= high


def are_texts(value: object) -> bool:
    """Return whether it is a list of texts, none of which is empty."""
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)


def _are_names(value: object) -> bool:
    """Return whether it is a list of different texts; one may be empty, as the name of a column may be."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and are_distinct(value)


def are_distinct(value: list[Any]) -> bool:
    return len(set(value)) == len(value)


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _depth(value: Any) -> int:
    """Count the levels of lists and objects, without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth
