"""Plan which runs of a method are missing, which are trained together, and which grid point each seed chooses."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword.core.artefact import Artefact
from foreword.core.files import remove_whole, write_whole
from foreword.core.locks import clear_locks, held_or_not
from foreword.errors import ArtefactError, ForewordError
from foreword.evaluation.planned_runs import PlannedRun, RunContext, is_kept, record_result, record_trial
from foreword.evaluation.predictions import primary
from foreword.evaluation.records import CHECKPOINTS, Record, writing
from foreword.training.contract import Method, Progress
from foreword.training.trainer import Outcome, Trained

OnMade = Callable[[PlannedRun, Trained, int], None]
Cells = Sequence[PlannedRun]
SHORTEST, LONGEST = 0.05, 2.0  # seconds between two looks at the stacks that other processes have


@dataclass(frozen=True)
class FailedRun:
    """Describe a run that ended in an error; it is tried again the next time."""

    model: str
    task: str
    method: str
    seed: int
    reason: str
    name: str | None = None


@dataclass(frozen=True, eq=False)
class Schedule:
    """Hold the plan for one method on one model.

    `found` and `failures` are added to as runs end, and `tell` is called with the number of runs that ended. At most
    `stack` runs train as one (None: no limit).
    """

    desk: RunContext
    method: Method
    train_many: Callable[..., list[Outcome]]
    stack: int | None
    progress: Progress | None
    tell: Callable[[int], None]
    found: dict[tuple[str, str], Record]
    failures: list[FailedRun]
    read_to: list[int] = field(default_factory=lambda: [0])  # the one number: bytes of the results that were taken in


IsDone = Callable[[Schedule, PlannedRun], bool]


def run_method(plan: Schedule, seeds: Mapping[Any, Cells]) -> list[Record]:
    """Run every seed and return the results; if the method can be mixed, all seeds and points share a stack."""
    if _mixes(plan.method):
        return _run_seeds(plan, list(seeds.values()))
    return [record for cells in seeds.values() for record in _run_seeds(plan, [cells])]


def _run_seeds(plan: Schedule, seeds: Sequence[Cells]) -> list[Record]:
    """Train missing runs, record each grid point's development score, then test each seed's chosen point."""
    made: dict[str, tuple[Trained, int]] = {}
    needed = [cell for cells in seeds if not is_complete(plan, cells) for cell in cells if _is_missing(plan, cell)]
    everything = [cell for cells in seeds for cell in cells]
    rivals_of = {cell.id: cells for cells in seeds for cell in cells}
    plan.tell(len(everything) - len(needed))

    def end(cell: PlannedRun, trained: Trained, together: int) -> None:
        rivals = rivals_of[cell.id]
        if len(rivals) == 1:
            _result(plan, cell, trained, together)
        else:
            if _mixes(plan.method):
                trained.artefact.save(_choice(plan, cell))
            plan.found["trial", cell.id] = record_trial(plan.desk, cell, trained, together)
            made[cell.id] = trained, together
            best = best_point(plan, rivals)
            for loser in [c for c in rivals if c is not best]:
                made.pop(loser.id, None)  # fine-tuned weights of a whole grid would not fit in memory
                _drop_choice(plan, loser)
        plan.tell(1)

    _train(plan, needed, everything, end, lambda p, c: not _is_missing(p, c) or _is_tested(p, c))
    results = []
    for cells in seeds:
        winner = best_point(plan, cells)
        if winner is None:
            continue
        if not _is_tested(plan, winner) and len(cells) > 1:
            kept = made.get(winner.id) or _recall_choice(plan, winner)
            if kept:
                _result(plan, winner, *kept)
            else:
                _train(plan, [winner], [winner], lambda c, t, n: _result(plan, c, t, n), _is_tested)
        for cell in cells:
            _drop_choice(plan, cell)
        if ("result", winner.id) in plan.found:
            results.append(plan.found["result", winner.id])
    return results


def _choice(plan: Schedule, cell: PlannedRun) -> Path:
    """Return the folder that keeps the best point so far of a stack; trained again alone it would not be equal."""
    return plan.desk.store.folder / CHECKPOINTS / f"choice-{cell.id}"


def _recall_choice(plan: Schedule, cell: PlannedRun) -> tuple[Trained, int] | None:
    timing = plan.found["trial", cell.id].timing
    try:
        artefact = Artefact.load(_choice(plan, cell))
    except ArtefactError:
        return None
    return Trained(artefact, timing.train_seconds if timing else 0.0, 0.0), timing.stack if timing else 1


def _drop_choice(plan: Schedule, cell: PlannedRun) -> None:
    place = _choice(plan, cell)
    shutil.rmtree(place, ignore_errors=True)
    _drop_empty(place.parent)


def best_point(plan: Schedule, cells: Cells) -> PlannedRun | None:
    """Return the point with the best main metric on the development rows, then the lowest NLL, then the first.

    A grid of one point needs no choice: return it once its result is recorded. Return None if nothing is recorded.
    """
    if len(cells) == 1:
        return cells[0] if ("result", cells[0].id) in plan.found else None
    scored = [(c, plan.found["trial", c.id].development) for c in cells if ("trial", c.id) in plan.found]
    return max(scored, key=lambda s: (s[1][primary(s[1])], -s[1].get("nll", 0.0)))[0] if scored else None


def is_complete(plan: Schedule, cells: Cells) -> bool:
    """Return whether a seed's point was chosen among all its points and tested."""
    if len(cells) > 1 and any(("trial", c.id) not in plan.found for c in cells):
        return False
    winner = best_point(plan, cells)
    return winner is not None and _is_tested(plan, winner)


def _is_missing(plan: Schedule, cell: PlannedRun) -> bool:
    return cell.rivals == 1 or ("trial", cell.id) not in plan.found


def _is_tested(plan: Schedule, cell: PlannedRun) -> bool:
    result = plan.found.get(("result", cell.id))
    if result is None or (plan.desk.templates and "templates" not in result.details):
        return False
    return not plan.desk.test or is_kept(plan.desk.store, result)


def _result(plan: Schedule, cell: PlannedRun, trained: Trained, together: int) -> None:
    plan.found["result", cell.id] = record_result(plan.desk, cell, trained, together)


def _train(plan: Schedule, needed: Cells, everything: Cells, on_made: OnMade, is_done: IsDone) -> None:
    """Train runs as stacks, each of which can be killed at any moment and resumes to the same numbers.

    Several processes may do so in one folder: each takes the stacks that no other process has, and waits for the rest.
    """
    left, wait = list(_stacks(plan, needed, everything)), SHORTEST
    while left:
        busy = []
        for stack in left:
            with held_or_not(plan.desk.store.folder / _name(stack)) as holder:
                if holder is not None:
                    busy.append(stack)
                    continue
                _take_over(plan)
                missing = [cell for cell in stack if cell in needed and not is_done(plan, cell)]
                ended = sum(cell in needed for cell in stack) - len(missing)
                if ended:
                    plan.tell(ended)
                if missing:
                    _train_stack(plan, stack, missing, on_made)
        wait = SHORTEST if len(busy) < len(left) else min(2 * wait, LONGEST)
        left = busy
        if left:
            time.sleep(wait)
    clear_locks(plan.desk.store.folder)


def _train_stack(plan: Schedule, stack: Cells, needed: Cells, on_made: OnMade) -> None:
    checkpoint = _checkpoint(plan, stack)
    ended: set[int] = set()

    def fail(cell: PlannedRun, reason: str) -> None:
        job = cell.job
        plan.failures.append(FailedRun(plan.desk.lm.name, job.task.name, job.method.name, job.seed, reason, cell.name))
        plan.tell(1)

    def on_done(index: int, outcome: Outcome) -> None:
        cell = stack[index]
        error = outcome if isinstance(outcome, ForewordError) else None
        if not isinstance(outcome, ForewordError) and cell in needed:
            try:
                on_made(cell, outcome, len(stack))
            except ArtefactError:
                raise  # the disk refuses: no run can be kept
            except ForewordError as wrong:
                error = wrong
        ended.add(index)
        if error is not None and cell in needed:
            fail(cell, str(error))

    if checkpoint:
        _pin(checkpoint, stack)
    try:
        plan.train_many(
            plan.desk.lm,
            [cell.job for cell in stack],
            progress=plan.progress,
            on_done=on_done,
            checkpoint=checkpoint,
            resume=checkpoint is not None and checkpoint.exists(),
        )
    except ForewordError:
        raise
    except Exception as error:  # a fault of one method, here or in a library, must not cost the others their runs
        logging.getLogger("foreword").debug("%s failed", plan.method.name, exc_info=True)
        for cell in (cell for index, cell in enumerate(stack) if index not in ended and cell in needed):
            fail(cell, f"it ended in an unexpected {type(error).__name__}: {error}")
    if checkpoint:
        _unpin(checkpoint)


def _take_over(plan: Schedule) -> None:
    """Read the runs that other processes have finished since the last call."""
    keys, plan.read_to[0] = plan.desk.store.keys_after(plan.read_to[0])
    if not keys <= plan.found.keys():
        for record in plan.desk.store.records():
            plan.found.setdefault((record.role, record.id), record)


def _stacks(plan: Schedule, needed: Cells, everything: Cells) -> Iterator[Cells]:
    """Yield the stacks that a killed process left, with the same runs, and then the other missing runs."""
    ids = {cell.id for cell in needed}
    for stack in _pinned(plan, everything):
        if any(cell.id in ids for cell in stack):
            ids -= {cell.id for cell in stack}
            yield stack
        elif (checkpoint := _checkpoint(plan, stack)) is not None:  # killed between its last record and its end
            with held_or_not(plan.desk.store.folder / _name(stack)) as holder:
                if holder is None:
                    remove_whole(checkpoint)
                    _unpin(checkpoint)
    size = (plan.stack or max(1, len(everything))) if _mixes(plan.method) else 1
    for start in range(0, len(everything), size):
        missing = [cell for cell in everything[start : start + size] if cell.id in ids]
        if missing:
            yield missing


def _pin(checkpoint: Path, stack: Cells) -> None:
    """Write which runs train together: in floating point, a run's last digits depend on the other runs of its stack."""
    told = {
        "ids": [cell.id for cell in stack],
        "names": [cell.name for cell in stack],
        "method": stack[0].job.method.name,
    }
    with writing(checkpoint):
        write_whole(checkpoint.with_suffix(".json"), json.dumps(told).encode())


def _unpin(checkpoint: Path) -> None:
    remove_whole(checkpoint.with_suffix(".json"))
    _drop_empty(checkpoint.parent)


def _drop_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # other stacks are still there, or it is gone
        folder.rmdir()


def _pinned(plan: Schedule, everything: Cells) -> Iterator[Cells]:
    """Yield the stacks of these runs that were begun and have not ended.

    A stack of named runs whose rows or recipe have changed since is not resumed; its files are removed.
    """
    cells = {cell.id: cell for cell in everything}
    names = {cell.name for cell in everything if cell.name is not None}
    for pin in sorted((plan.desk.store.folder / CHECKPOINTS).glob("[!.]*.json")):
        try:
            told = json.loads(pin.read_bytes())
        except (ValueError, OSError):
            continue
        if all(i in cells for i in told["ids"]):
            yield [cells[i] for i in told["ids"]]
        elif told["method"] == plan.method.name and names.issuperset(told["names"]):
            with held_or_not(plan.desk.store.folder / pin.stem) as holder:
                if holder is None:
                    for suffix in (".safetensors", ".jsonl"):
                        remove_whole(pin.with_suffix(suffix))
                    _unpin(pin)


def _mixes(method: Method) -> bool:
    return method.gradient and method.mixed_batch


def _checkpoint(plan: Schedule, stack: Cells) -> Path | None:
    """Return the file for the state of a stack or a search; None for whole models, whose weights are too large."""
    if not plan.method.resumes or not plan.method.freezes_lm:
        return None
    suffix = "safetensors" if plan.method.gradient else "jsonl"
    return plan.desk.store.folder / CHECKPOINTS / f"{_name(stack)}.{suffix}"


def _name(stack: Cells) -> str:
    """Return the name of a stack's files, without a suffix."""
    return hashlib.sha256(" ".join(cell.id for cell in stack).encode()).hexdigest()[:20]
