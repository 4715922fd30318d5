"""Which runs of a method are missing, how they are trained together, and which grid point each seed chooses."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword.errors import ForewordError
from foreword.evaluation.records import Record
from foreword.evaluation.run import Cell, Desk, record_result, record_trial
from foreword.methods.base import Method, Progress
from foreword.methods.train import Outcome, Trained

OnMade = Callable[[Cell, Trained, int], None]
Cells = Sequence[Cell]


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error; it is tried again the next time."""

    model: str
    method: str
    seed: int
    reason: str


@dataclass(frozen=True, eq=False)
class Schedule:
    """One method on one model. `found` and `failures` are added to as runs end; `tell` hears how many did.

    At most `stack` runs train as one (None: no limit).
    """

    desk: Desk
    method: Method
    train_many: Callable[..., list[Outcome]]
    stack: int | None
    progress: Progress | None
    tell: Callable[[int], None]
    found: dict[tuple[str, str], Record]
    failures: list[Failure]


def run_method(plan: Schedule, seeds: Mapping[int, Cells]) -> list[Record]:
    """Every seed's result: all seeds and grid points as one stack where the method can be mixed, else seed by seed."""
    if _mixes(plan.method):
        return _run_seeds(plan, list(seeds.values()))
    return [record for cells in seeds.values() for record in _run_seeds(plan, [cells])]


def _run_seeds(plan: Schedule, seeds: Sequence[Cells]) -> list[Record]:
    """Train what is missing, record each grid point's development score, then test each seed's choice."""
    made: dict[str, tuple[Trained, int]] = {}
    needed = [cell for cells in seeds if not is_complete(plan, cells) for cell in cells if _is_missing(plan, cell)]
    everything = [cell for cells in seeds for cell in cells]
    rivals_of = {cell.id: cells for cells in seeds for cell in cells}
    plan.tell(len(everything) - len(needed))

    def end(cell: Cell, trained: Trained, together: int) -> None:
        rivals = rivals_of[cell.id]
        if len(rivals) == 1:
            _result(plan, cell, trained, together)
        else:
            plan.found["trial", cell.id] = record_trial(plan.desk, cell, trained, together)
            made[cell.id] = trained, together
            best = best_point(plan, rivals)
            for loser in [c.id for c in rivals if c.id in made and c is not best]:
                del made[loser]  # fine-tuned weights of a whole grid would not fit in memory
        plan.tell(1)

    _train(plan, needed, everything, end)
    results = []
    for cells in seeds:
        winner = best_point(plan, cells)
        if winner is None:
            continue
        if not _is_tested(plan, winner) and len(cells) > 1:
            if winner.id in made:
                _result(plan, winner, *made[winner.id])
            else:
                _train(plan, [winner], [winner], lambda c, t, n: _result(plan, c, t, n))
        if ("result", winner.id) in plan.found:
            results.append(plan.found["result", winner.id])
    return results


def best_point(plan: Schedule, cells: Cells) -> Cell | None:
    """The point with the best development accuracy, then likelihood, then the first; one point needs no choice."""
    if len(cells) == 1:
        return cells[0] if ("result", cells[0].id) in plan.found else None
    scored = [(c, plan.found["trial", c.id].development) for c in cells if ("trial", c.id) in plan.found]
    return max(scored, key=lambda s: (s[1]["accuracy"], -s[1]["nll"]))[0] if scored else None


def is_complete(plan: Schedule, cells: Cells) -> bool:
    """Whether a seed's choice was made among all its points and tested."""
    if len(cells) > 1 and any(("trial", c.id) not in plan.found for c in cells):
        return False
    winner = best_point(plan, cells)
    return winner is not None and _is_tested(plan, winner)


def _is_missing(plan: Schedule, cell: Cell) -> bool:
    return cell.rivals == 1 or ("trial", cell.id) not in plan.found


def _is_tested(plan: Schedule, cell: Cell) -> bool:
    result = plan.found.get(("result", cell.id))
    return result is not None and (not plan.desk.test or plan.desk.store.predictions(result) is not None)


def _result(plan: Schedule, cell: Cell, trained: Trained, together: int) -> None:
    plan.found["result", cell.id] = record_result(plan.desk, cell, trained, together)


def _train(plan: Schedule, needed: Cells, everything: Cells, on_made: OnMade) -> None:
    """Hand runs over as stacks; one that left a checkpoint goes on as it was, so that it ends in the same numbers."""
    for stack in _stacks(plan, needed, everything):
        checkpoint = _checkpoint(plan, stack)

        def on_done(index: int, outcome: Outcome, stack: Cells = stack) -> None:
            cell = stack[index]
            if isinstance(outcome, ForewordError):
                plan.failures.append(Failure(plan.desk.lm.name, plan.method.name, cell.job.seed, str(outcome)))
                plan.tell(1)
            elif cell in needed:
                on_made(cell, outcome, len(stack))

        plan.train_many(
            plan.desk.lm,
            [cell.job for cell in stack],
            progress=plan.progress,
            on_done=on_done,
            checkpoint=checkpoint,
            resume=checkpoint is not None and checkpoint.exists(),
        )


def _stacks(plan: Schedule, needed: Cells, everything: Cells) -> Iterator[Cells]:
    size = (plan.stack or max(1, len(everything))) if _mixes(plan.method) else 1
    for start in range(0, len(everything), size):
        stack = everything[start : start + size]
        missing = [cell for cell in stack if cell in needed]
        if missing:
            left = _checkpoint(plan, stack)
            yield stack if left is not None and left.exists() else missing


def _mixes(method: Method) -> bool:
    return method.gradient and method.mixed_batch


def _checkpoint(plan: Schedule, stack: Cells) -> Path | None:
    """Where a stack's state goes; the weights of a whole model are not worth writing every few steps."""
    if not (plan.method.gradient and plan.method.freezes_lm):
        return None
    name = hashlib.sha256(" ".join(cell.id for cell in stack).encode()).hexdigest()[:20]
    return plan.desk.store.folder / "checkpoints" / f"{name}.safetensors"
