"""One run: an artefact read on the test rows, measured, kept and recorded."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foreword.core.artefact import Artefact, made_of
from foreword.core.prompts import HardPrompt
from foreword.errors import ArtefactError, DataError
from foreword.evaluation.records import ARTEFACTS, Record, Store, Timing, run_id
from foreword.evaluation.statistics import interval, resample
from foreword.methods.base import HardConfig, Job
from foreword.methods.train import Trained
from foreword.models.base import FrozenLM
from foreword.tasks.metrics import all_metrics, log_probabilities
from foreword.tasks.rows import Row

Pairs = Sequence[tuple[Artefact, Sequence[Row]]]
CALIBRATION = frozenset(f.name for f in fields(HardConfig))
DETAILS = ("demonstrations", "order_entropy", "calibration", "calibration_accuracy", "calibration_nll")
Score = Callable[[FrozenLM, Pairs], Sequence[Any]]  # per pair (rows, labels), -inf where a row has no such label


@dataclass(frozen=True, eq=False)
class Scored:
    """Log-probabilities of each row's labels, the right label, and how fast they were had."""

    logprob_RC: NDArray[np.float64]
    label_R: NDArray[np.int64]
    examples_per_second: float

    def metrics(self, closed: bool = True) -> dict[str, float]:
        """All metrics of the rows; macro-F1 only where all rows share their labels (`closed`)."""
        found = all_metrics(self.logprob_RC, self.label_R)
        return {name: value for name, value in found.items() if closed or name != "macro_f1"}


def score_rows(lm: FrozenLM, artefact: Artefact, rows: Sequence[Row], score: Score) -> Scored:
    """Read an artefact on labelled rows.

    Raises: DataError where there are no rows, or one has no label.
    """
    if not rows:
        raise DataError("There are no rows to evaluate on; give a task with rows in this split.")
    for row in rows:
        if row.label is None:
            raise DataError(
                f"{row.where or 'A row'} has no label, so nothing can be measured on it; label it or leave it out."
            )
    began = time.perf_counter()
    scores = score(lm, [(artefact, rows)])[0]
    seconds = time.perf_counter() - began
    score_RC = torch.as_tensor(scores).detach().double().cpu().numpy()
    label_R = np.array([row.label for row in rows], dtype=np.int64)
    return Scored(log_probabilities(score_RC), label_R, len(rows) / max(seconds, 1e-9))


class ScoreCache:
    """Scores of artefacts that training left alone: a hand-written prompt reads the same rows once, not once a seed.

    The same words calibrated by another rule are not read again either: their log-probabilities are shifted.
    """

    def __init__(self, score: Score) -> None:
        self._score = score
        self._found: dict[str, Scored] = {}

    def score(self, lm: FrozenLM, artefact: Artefact, rows: Sequence[Row], rows_hash: str) -> Scored:
        if (
            artefact.numbers_trained
            or not isinstance(artefact.value, HardPrompt)
            or artefact.format.premise is not None
        ):
            return score_rows(lm, artefact, rows, self._score)
        form = artefact.format
        bare = replace(form, shift=(), temperature=1.0, calibration="none")
        config = {name: value for name, value in artefact.config.items() if name not in CALIBRATION}
        key = json.dumps([artefact.method, config, bare.to_json(), artefact.fingerprint, lm.kind, rows_hash])
        if key not in self._found:
            self._found[key] = score_rows(lm, replace(artefact, format=bare), rows, self._score)
        found = self._found[key]
        if not form.calibrated:
            return found
        shifted_RC = found.logprob_RC + np.array(form.shift or [0.0])
        return replace(found, logprob_RC=log_probabilities(shifted_RC / form.temperature))


@dataclass(frozen=True, eq=False)
class Desk:
    """The model whose runs are measured, and the folder they are recorded in.

    `allowed` grid points a method may try; artefacts above `keep_bytes` are not kept; without `test` no test row is
    read. `templates` measures a method that is words in other templates too, where that is asked for.
    """

    lm: FrozenLM
    store: Store
    cache: ScoreCache
    fingerprint: dict[str, str]
    model_numbers: int
    environment: dict[str, Any]
    allowed: int
    test: bool
    keep_bytes: int | None
    templates: Callable[[Job], dict[str, Any]] | None = None


def make_desk(
    lm: FrozenLM,
    store: Store,
    score: Score | ScoreCache,
    *,
    allowed: int,
    test: bool,
    keep_bytes: int | None,
) -> Desk:
    """A desk for this model over this folder; a cache that is given keeps what it holds."""
    return Desk(
        lm=lm,
        store=store,
        cache=score if isinstance(score, ScoreCache) else ScoreCache(score),
        fingerprint=asdict(lm.fingerprint()),
        model_numbers=sum(tensor.numel() for tensor in lm.named_weights().values()),
        environment=environment(lm),
        allowed=allowed,
        test=test,
        keep_bytes=keep_bytes,
    )


@dataclass(frozen=True, eq=False)
class Cell:
    """One run to be had: its id, its job, and how many shots its rows were drawn with (None: all rows).

    `point` holds the options that vary in the grid it belongs to, `rivals` counts that grid's points. `name` is what
    its artefact is called where a person chose that (None: a name is made from what decides the run).
    """

    id: str
    job: Job
    shots: int | None
    point: dict[str, Any]
    rivals: int
    name: str | None = None


def make_cells(desk: Desk, jobs: Sequence[Job], shots: int | None, name: str | None = None) -> list[Cell]:
    """The cells of one seed's grid."""
    configs = [asdict(job.config) for job in jobs]
    varying = [key for key in configs[0] if any(c[key] != configs[0][key] for c in configs)]
    points = [{key: config[key] for key in varying} for config in configs]
    return [_cell(desk, job, shots, point, len(jobs), name) for job, point in zip(jobs, points, strict=True)]


def _cell(desk: Desk, job: Job, shots: int | None, point: dict[str, Any], rivals: int, own: str | None) -> Cell:
    """A cell with the id that everything deciding the run gives it."""
    # `kept` follows from the weights, and what is empty decides nothing.
    weights = {level: value for level, value in desk.fingerprint.items() if value and level != "kept"}
    decides = {
        "fingerprint": weights,
        "kind": desk.lm.kind,
        "format": job.format.to_json(),
        "hashes": job.task.hashes(),
        "method": job.method,
        "config": asdict(job.config),
        "seed": job.seed,
        **({} if own is None else {"name": own}),
    }
    name = " ".join([job.name, *(f"{key}={value}" for key, value in point.items())])
    return Cell(run_id(decides), replace(job, name=name), shots, point, rivals, own)


def record_trial(desk: Desk, cell: Cell, trained: Trained, together: int) -> Record:
    """Record a grid point's development score; `together` runs were trained as one stack."""
    return desk.store.add(_record(desk, cell, trained, Timing(trained.seconds, together, None)))


def record_result(desk: Desk, cell: Cell, trained: Trained, together: int) -> Record:
    """Read the test rows, keep the artefact with its metrics, and record the result."""
    task, artefact = cell.job.task, trained.artefact
    if not desk.test:
        timing = Timing(trained.seconds, together, None)
        return desk.store.add(_record(desk, cell, trained, timing, role="result", artefact=_keep(desk, cell, artefact)))
    scored = desk.cache.score(desk.lm, artefact, task.test, task.hashes()["test"])
    metrics = scored.metrics(closed=bool(task.labels))
    accuracy = interval([resample("accuracy", scored.logprob_RC, scored.label_R)])
    bounds = {"accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
    kept = _keep(desk, cell, artefact.with_metrics(test={"rows": len(task.test), **metrics, **bounds}))
    timing = Timing(trained.seconds, together, scored.examples_per_second)
    record = _record(desk, cell, trained, timing, role="result", metrics=metrics, artefact=kept)
    if desk.templates:
        record = replace(record, details=record.details | {"templates": desk.templates(cell.job)})
    return desk.store.add(record, scored.logprob_RC, scored.label_R)


def _keep(desk: Desk, cell: Cell, artefact: Artefact) -> str | None:
    if desk.keep_bytes is not None and artefact.bytes_stored > desk.keep_bytes:
        return None
    shots = "all" if cell.shots is None else f"{cell.shots}-shot"
    made = f"{cell.job.method}-{cell.job.task.name}-{shots}-{desk.lm.kind}-seed-{cell.job.seed}-{cell.id[:8]}"
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in made) if cell.name is None else cell.name
    place = f"{ARTEFACTS}/{name}"
    artefact.save(desk.store.folder / place)
    return place


def is_kept(store: Store, record: Record) -> bool:
    """Whether all of a tested run is there: its predictions, and the artefact if its record names one."""
    if store.predictions(record) is None:
        return False
    if record.artefact is None:
        return True
    try:
        found = Artefact.load(store.folder / record.artefact)
    except ArtefactError:
        return False
    same = found.made_of == made_of(record.method, record.config, record.seed, record.hashes, record.format)
    return same and found.fingerprint in ({}, record.fingerprint)


def _record(
    desk: Desk,
    cell: Cell,
    trained: Trained,
    timing: Timing,
    *,
    role: str = "trial",
    metrics: Mapping[str, float] | None = None,
    artefact: str | None = None,
) -> Record:
    job, made = cell.job, trained.artefact
    return Record(
        id=cell.id,
        role="result" if role == "result" else "trial",
        model=desk.lm.name,
        kind=desk.lm.kind,
        model_numbers=desk.model_numbers,
        fingerprint=desk.fingerprint,
        task=job.task.name,
        synthetic=job.task.synthetic,
        labels=len(job.task.labels),
        k=cell.shots,
        rows={split: len(job.task.rows(split)) for split in ("train", "validation", "test")},
        hashes=job.task.hashes(),
        format=job.format.to_json(),
        method=job.method,
        config=asdict(job.config),
        seed=job.seed,
        point=cell.point,
        tried=cell.rivals,
        allowed=desk.allowed,
        development={k: float(v) for k, v in made.metrics.get("validation", {}).items() if k != "rows"},
        metrics=dict(metrics or {}),
        numbers_trained=made.numbers_trained,
        bytes_stored=made.bytes_stored,
        predictions=None,
        artefact=artefact,
        environment=desk.environment,
        timing=timing,
        details={name: made.metrics[name] for name in DETAILS if name in made.metrics},
    )


def environment(lm: FrozenLM) -> dict[str, Any]:
    """What numbers may depend on besides the run itself; no host name and no clock."""
    return {
        "foreword": _version("foreword"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else lm.device.type,
        "dtype": str(lm.dtype).removeprefix("torch."),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
