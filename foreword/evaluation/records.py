"""Keep the results of a comparison on disk: one JSON line for each finished run, and its predictions beside it.

`results.jsonl` holds the results, so that a run made again gives the same line; `timings.jsonl` holds the measured
times. A run's id is the hash of everything that decides it; a run whose id is in the folder is not run again.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from foreword.core.artefact import RECORD
from foreword.core.files import write_whole
from foreword.errors import ArtefactError
from foreword.evaluation.predictions import Found, Scored, TextPredictions, primary
from foreword.tasks.text_metric import recorded

RESULTS, TIMINGS, PREDICTIONS, ARTEFACTS = "results.jsonl", "timings.jsonl", "predictions", "artefacts"
CHECKPOINTS = "checkpoints"  # of stacks that are being trained; gone when they have ended


@dataclass(frozen=True)
class Timing:
    """Hold the seconds of training (its share, if `stack` runs trained together) and the test rows scored a second."""

    train_seconds: float
    stack: int
    examples_per_second: float | None


@dataclass(frozen=True)
class Record:
    """Describe one run: a "trial" is a grid point with its development score, a "result" a run with its test metrics.

    `model_numbers` counts the model's parameters, `labels` the labels (0: each row has its own), `k` is the number of
    shots for each label (None: all rows). `point` holds the options that the grid varies; `tried` counts the points
    that the choice was made from, and `allowed` the most that a method may try. `predictions` and `artefact` are paths
    inside the comparison's folder. A metric that could not be measured is NaN, and null on disk. `details` holds facts
    about the method's words and texts: the number of demonstrations, the calibration rule, how texts were compared and
    cut, and the results with other templates.
    """

    id: str
    role: Literal["trial", "result"]
    model: str
    kind: str
    model_numbers: int
    fingerprint: dict[str, str]
    task: str
    synthetic: bool
    labels: int
    k: int | None
    rows: dict[str, int]
    hashes: dict[str, str]
    format: dict[str, Any]
    method: str
    config: dict[str, Any]
    seed: int
    point: dict[str, Any]
    tried: int
    allowed: int
    development: dict[str, float]
    metrics: dict[str, float]
    numbers_trained: int
    bytes_stored: int
    predictions: str | None
    artefact: str | None
    environment: dict[str, Any]
    timing: Timing | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        """Return the main metric of the run: accuracy, or the task's own metric for answers in text."""
        return primary(self.metrics or self.development)

    @property
    def computed_on(self) -> str:
        """Return the GPU, or else the kind of processor, and the data type of the numbers."""
        on = self.environment
        return f"{on['machine'] if on['device'] == 'cpu' else on['device']}, {on['dtype']}"

    @property
    def draw(self) -> tuple[int, int]:
        """Return the repetition: the number of its draw of training rows (-1: drawn with the seed), and its seed."""
        return int(self.details.get("subset", -1)), self.seed

    @property
    def question(self) -> tuple[Any, ...]:
        """Return what runs must share to be compared: the model, the test rows, and the number of training rows."""
        return (
            self.model,
            self.kind,
            self.fingerprint["weights"],
            self.task,
            self.k,
            self.rows["train"],
            self.hashes["test"],
        )


FIELDS = tuple(f.name for f in fields(Record) if f.name not in ("timing", "details"))


def run_id(decides: Mapping[str, Any]) -> str:
    """Return the hash of everything that decides a run: model, rows, format, method, config and seed."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Store:
    """Read and write a comparison's folder, which several processes may share. Lines are added whole or not at all."""

    folder: Path

    @staticmethod
    def open(folder: str | Path) -> "Store":
        """Open the store in a folder, which is created if it does not exist.

        Raises: ArtefactError if the folder cannot be made, is an artefact's folder, or has results that something else
        wrote.
        """
        store = Store(Path(folder))
        if (store.folder / RECORD).exists():
            raise ArtefactError(f"{folder} is an artefact's folder; name another one for the results.")
        with writing(store.folder):
            store.folder.mkdir(parents=True, exist_ok=True)
        store.records()
        return store

    def records(self) -> list[Record]:
        """Return all runs in the order they were added; the last line of a run replaces its earlier lines."""
        timings = {
            t["id"]: Timing(t["train_seconds"], t["stack"], t["examples_per_second"]) for t in self._lines(TIMINGS)
        }
        results: dict[tuple[str, str], Record] = {}
        for number, line in enumerate(self._lines(RESULTS), 1):
            try:
                own = {name: line[name] for name in FIELDS}
                for name in ("development", "metrics"):
                    own[name] = {n: math.nan if value is None else value for n, value in own[name].items()}
                record = Record(**own, timing=timings.get(line["id"]), details=line.get("details", {}))
            except KeyError as error:
                raise ArtefactError(
                    f"{self.folder / RESULTS}, line {number} has no {error}; another version of Foreword wrote it. "
                    "Name a new folder, or move this one away."
                ) from error
            results.pop((record.role, record.id), None)
            results[record.role, record.id] = record
        return list(results.values())

    def keys_after(self, start: int) -> tuple[set[tuple[str, str]], int]:
        """Return role and id of the runs whose lines come after byte `start` of the results, and the end's byte."""
        path = self.folder / RESULTS
        if not path.exists():
            return set(), start
        with writing(path), path.open("rb") as file:
            file.seek(start)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in data.splitlines()]
            return {(line["role"], line["id"]) for line in lines}, start + len(data)
        except (ValueError, KeyError, TypeError):  # `records` says what is wrong
            return {("", "")}, start

    def add(self, record: Record, found: Found | None = None) -> Record:
        """Write the predictions, the timing, and last the line of the finished run; return the record as written."""
        if found is not None:
            place = f"{PREDICTIONS}/{record.id}.{'jsonl' if isinstance(found, TextPredictions) else 'safetensors'}"
            record = replace(record, predictions=place)
            with writing(self.folder / place):
                write_whole(self.folder / place, _packed(found))
        if record.timing is not None:
            self._append(TIMINGS, {"id": record.id, **asdict(record.timing)})
        details = {"details": record.details} if record.details else {}
        told = {name: recorded(getattr(record, name)) for name in ("development", "metrics")}
        self._append(RESULTS, {name: getattr(record, name) for name in FIELDS} | told | details)
        return record

    def predictions(self, record: Record) -> Found | None:
        """Return the predictions on the test rows: label scores, or texts; None if the file is lost or damaged."""
        if record.predictions is None:
            return None
        try:
            data = (self.folder / record.predictions).read_bytes()
            if record.predictions.endswith(".jsonl"):
                return TextPredictions.load(data)
            arrays = load_arrays(data)
            return Scored(arrays["logprob"].astype(np.float64), arrays["label"].astype(np.int64))
        except (OSError, KeyError, ValueError, TypeError, SafetensorError):
            return None

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"  # ASCII: some readers take U+2028 for the end of a line
        path = self.folder / name
        with writing(path), path.open("a+b") as file, _locked(file):
            end = _whole_lines(file)
            file.truncate(end)  # what a killed process wrote of its last line
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return []
        with writing(path):
            *whole, _torn = path.read_bytes().split(b"\n")
        parsed = []
        for number, line in enumerate(whole, 1):
            try:
                parsed.append(json.loads(line))
            except ValueError as error:
                raise ArtefactError(
                    f"{path}, line {number} is not JSON, and only the last line of a killed run may be torn. "
                    "Delete that line and run the same command again; the other runs are kept."
                ) from error
        return parsed


def _packed(found: Found) -> bytes:
    if isinstance(found, TextPredictions):
        return found.dump()
    return save_arrays({"logprob": found.logprob_RC.astype(np.float32), "label": found.label_R.astype(np.int32)})


def _whole_lines(file: BinaryIO) -> int:
    """Return the byte offset after the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


@contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """Prevent other processes from writing to the file at the same time; do nothing if the system has no such lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into an ArtefactError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be read or written ({error.strerror or error}); the runs finished before are kept. "
            "Make room or name another folder, then run the same command again."
        ) from error
