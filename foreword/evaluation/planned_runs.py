"""Measure one run on the test rows, keep its artefact, and record its results."""

import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from foreword.core.artefact import Artefact, made_of
from foreword.core.format import without_clock
from foreword.errors import ArtefactError
from foreword.evaluation.predictions import ReadCache, primary
from foreword.evaluation.records import ARTEFACTS, Record, Store, Timing, run_id
from foreword.evaluation.statistics import interval
from foreword.models.base import FrozenLM
from foreword.tasks.answer_metrics import RULE
from foreword.tasks.task import Task
from foreword.tasks.text_metric import Judge, recorded
from foreword.training.contract import Job
from foreword.training.trainer import Trained

DETAILS = (
    *("demonstrations", "order_entropy", "calibration", "calibration_accuracy", "calibration_nll"),
    *("set_aside", "longer_targets"),
)


@dataclass(frozen=True, eq=False)
class RunContext:
    """Hold the model whose runs are measured, and the folder that they are recorded in.

    A method may try `allowed` grid points; artefacts above `keep_bytes` are not kept; without `test` no test row is
    read. `templates` also measures a job in other templates, if that was requested and the method's prompt is words.
    """

    lm: FrozenLM
    store: Store
    cache: ReadCache
    fingerprint: dict[str, str]
    model_numbers: int
    environment: dict[str, Any]
    allowed: int
    test: bool
    keep_bytes: int | None
    templates: Callable[[Job], dict[str, Any]] | None = None


def make_desk(
    lm: FrozenLM, store: Store, cache: ReadCache, *, allowed: int, test: bool, keep_bytes: int | None
) -> RunContext:
    """Return the context of this model's runs in this folder; the cache may hold what other contexts read."""
    return RunContext(
        lm=lm,
        store=store,
        cache=cache,
        fingerprint=asdict(lm.fingerprint()),
        model_numbers=sum(tensor.numel() for tensor in lm.named_weights().values()),
        environment=environment(lm),
        allowed=allowed,
        test=test,
        keep_bytes=keep_bytes,
    )


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """Describe one run to be made: its id, its job, and the shots that its rows were drawn with (None: all rows).

    `point` holds the options that vary in the grid it belongs to, and `rivals` counts that grid's points. `name` is the
    name of its artefact if the user chose one (None: a name is made from what decides the run). `subset` is the number
    of the draw of its rows, if that has a seed of its own.
    """

    id: str
    job: Job
    shots: int | None
    point: dict[str, Any]
    rivals: int
    name: str | None = None
    subset: int | None = None


def make_cells(
    desk: RunContext, jobs: Sequence[Job], shots: int | None, name: str | None = None, subset: int | None = None
) -> list[PlannedRun]:
    """Return the planned runs of one seed's grid; `jobs` are its points."""
    configs = [asdict(job.config) for job in jobs]
    varying = [key for key in configs[0] if any(c[key] != configs[0][key] for c in configs)]
    points = [{key: config[key] for key in varying} for config in configs]
    cells = [_cell(desk, job, shots, point, len(jobs), name) for job, point in zip(jobs, points, strict=True)]
    return [replace(cell, subset=subset) for cell in cells]


def _cell(
    desk: RunContext, job: Job, shots: int | None, point: dict[str, Any], rivals: int, own: str | None
) -> PlannedRun:
    """Return a planned run whose id is the hash of everything that decides the run."""
    # `kept` follows from the weights, and what is empty decides nothing.
    weights = {level: value for level, value in desk.fingerprint.items() if value and level != "kept"}
    decides = {
        "fingerprint": weights,
        "kind": desk.lm.kind,
        "format": without_clock(job.format.to_json()),
        "hashes": job.task.hashes(),
        "method": job.method.name,
        "config": asdict(job.config),
        "seed": job.seed,
        **({} if own is None else {"name": own}),
        **({"judge": _judged(job.task.judge)} if job.task.metric else {}),
    }
    name = " ".join([job.name, *(f"{key}={value}" for key, value in point.items())])
    return PlannedRun(run_id(decides), replace(job, name=name), shots, point, rivals, own)


def _judged(judge: Judge) -> dict[str, Any]:
    """Return how texts are judged. The rule for single answers has changed once, so runs with the old rule differ."""
    return judge.to_json() | ({} if judge.generates else {"rule": RULE})


def record_trial(desk: RunContext, cell: PlannedRun, trained: Trained, together: int) -> Record:
    """Record a grid point's development score; `together` runs were trained as one stack."""
    return desk.store.add(_record(desk, cell, trained, Timing(trained.seconds, together, None)))


def record_result(desk: RunContext, cell: PlannedRun, trained: Trained, together: int) -> Record:
    """Read the test rows, keep the artefact with its metrics, and record the result."""
    task, artefact = cell.job.task, trained.artefact
    if not desk.test:
        timing = Timing(trained.seconds, together, None)
        return desk.store.add(_record(desk, cell, trained, timing, role="result", artefact=_keep(desk, cell, artefact)))
    reading = desk.cache.read(desk.lm, artefact, task)
    metrics = reading.found.metrics(closed=bool(task.labels))
    name = primary(metrics)
    judged = interval([reading.found.resampled([name])[name]])
    bounds = {f"{name}_low": judged.low, f"{name}_high": judged.high}
    kept = _keep(desk, cell, artefact.with_metrics(test={"rows": len(task.test), **recorded({**metrics, **bounds})}))
    timing = Timing(trained.seconds, together, reading.examples_per_second)
    record = _record(desk, cell, trained, timing, role="result", metrics=metrics, artefact=kept)
    if reading.reasoned:
        record = replace(record, details=record.details | {"reasoned": dict(reading.reasoned)})
    if desk.templates:
        record = replace(record, details=record.details | {"templates": desk.templates(cell.job)})
    return desk.store.add(record, reading.found)


def _keep(desk: RunContext, cell: PlannedRun, artefact: Artefact) -> str | None:
    if desk.keep_bytes is not None and artefact.bytes_stored > desk.keep_bytes:
        return None
    shots = "all" if cell.shots is None else f"{cell.shots}-shot"
    made = f"{cell.job.method.name}-{cell.job.task.name}-{shots}-{desk.lm.kind}-seed-{cell.job.seed}-{cell.id[:8]}"
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in made) if cell.name is None else cell.name
    place = f"{ARTEFACTS}/{name}"
    artefact.save(desk.store.folder / place)
    return place


def is_kept(store: Store, record: Record) -> bool:
    """Return whether the files of a tested run are there: its predictions, and the artefact if its record names one."""
    if store.predictions(record) is None:
        return False
    if record.artefact is None:
        return True
    try:
        result = Artefact.load(store.folder / record.artefact)
    except ArtefactError:
        return False
    same = result.made_of == made_of(record.method, record.config, record.seed, record.hashes, record.format)
    return same and result.fingerprint in ({}, record.fingerprint)


def _record(
    desk: RunContext,
    cell: PlannedRun,
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
        method=job.method.name,
        config=asdict(job.config),
        seed=job.seed,
        point=cell.point,
        tried=cell.rivals,
        allowed=desk.allowed,
        development=_development(made),
        metrics=dict(metrics or {}),
        numbers_trained=made.numbers_trained,
        bytes_stored=made.bytes_stored,
        predictions=None,
        artefact=artefact,
        environment=desk.environment,
        timing=timing,
        details={name: made.metrics[name] for name in DETAILS if name in made.metrics}
        | ({"case": job.task.case} if job.task.case != "kept" else {})
        | _details_of(job.task)
        | ({} if cell.subset is None else {"subset": cell.subset}),
    )


def _details_of(task: Task) -> dict[str, Any]:
    """Return the tokenizers that the test texts are measured by, if they are not the libraries' own."""
    found = task.judge.tokenizers([row.targets for row in task.test]) if task.metric else {}
    return {"tokenizers": found} if found else {}


def _development(made: Artefact) -> dict[str, float]:
    """Return the metrics of the development rows, and for a search also its choice's metric on its selection rows."""
    told = made.metrics.get("validation", {})
    found = {k: math.nan if v is None else float(v) for k, v in told.items() if k != "rows"}
    search = made.metrics.get("search")
    return found if search is None else {**found, "selection": float(search["selection_metric"])}


def environment(lm: FrozenLM) -> dict[str, Any]:
    """Return the software and hardware that a run's numbers may depend on, without host name or time."""
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
