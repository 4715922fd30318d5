"""Rows to be labelled: a pass takes some of every request that waits, of as many prompts as they have."""

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from foreword.core.shapes import Float, Tensor
from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.models.parts import joined
from foreword.models.score import score
from foreword.serving.bank import PromptBank
from foreword.serving.jobs import Judging, Labelling, Unit, columns, settle
from foreword.serving.mixed import attempt, mixed_bank
from foreword.serving.work import Judged


@final
class Turns:
    """Rows that wait, by request. Requests take turns: one row does not wait for all rows of another request.

    A pass begins with requests of which nothing was read yet, if the pass before did not. Neither they nor the long
    ones starve.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[Judging, deque[Unit]] = OrderedDict()
        self._fresh: OrderedDict[Judging, None] = OrderedDict()
        self._ahead = False

    def __bool__(self) -> bool:
        return bool(self._of)

    def __iter__(self) -> Iterator[Labelling]:
        return (unit.job for units in self._of.values() for unit in units)

    def append(self, job: Labelling) -> None:
        if job.of not in self._of:
            self._of[job.of] = deque()
            self._fresh[job.of] = None
        self._of[job.of].extend(job.units())

    def take(self, tokens: int) -> list[Unit]:
        """A unit of each request in turn, while they have so many tokens at most together, and at least one."""
        self._ahead = bool(self._fresh) and not self._ahead
        for of in reversed(self._fresh) if self._ahead else self._fresh:
            self._of.move_to_end(of, last=not self._ahead)
        taken: list[Unit] = []
        while self._of:
            of, units = next(iter(self._of.items()))
            tokens -= units[0].row.cost
            gone = of.result.done()  # cancelled, or one of its rows failed
            if not gone and taken and tokens < 0:
                break
            self._fresh.pop(of, None)
            if gone:
                tokens += units[0].row.cost
                units.clear()
            else:
                taken.append(units.popleft())
            self._of.move_to_end(of)
            if not units:
                del self._of[of]
        return taken


@final
@dataclass(eq=False)
class Labeller:
    """Of one model and one thread. `rate` is in rows a second, of late."""

    lm: FrozenLM
    bank: PromptBank
    waiting: Turns = field(default_factory=Turns)
    batches: int = 0
    rows: int = 0
    rate: float = 0.0

    def step(self) -> None:
        """One pass over rows of the requests that wait, of as many prompts as they have."""
        taken = self.waiting.take(self.lm.batch_tokens)
        if taken:
            attempt(self._label, taken, [unit.job.of.result for unit in taken])

    def _label(self, units: Sequence[Unit]) -> None:
        began = time.monotonic()
        bank, task_of, led = mixed_bank(self.lm, self.bank, [(unit.job.entry, unit.row) for unit in units])
        rows = [unit.row.without_lead() if alone else unit.row for unit, alone in zip(units, led, strict=True)]
        score_BC = score(self.lm, rows, bank, torch.tensor(task_of)).double().cpu()
        ended: list[tuple[Labelling, Judged]] = []
        for unit, score_C in zip(units, score_BC, strict=True):
            whole_C = _whole(unit, score_C)
            if whole_C is not None:
                ended.append((unit.job, _judged(unit.job, whole_C)))
        for job, one in ended:
            job.of.found[job.index] = one
            job.of.left -= 1
            if not job.of.left:
                settle(job.of.result, [done for done in job.of.found if done is not None])
        self.batches += 1
        self.rows += len(ended)
        rate = len(ended) / max(1e-6, time.monotonic() - began)
        self.rate = 0.8 * self.rate + 0.2 * rate if self.rate else rate


def _whole(unit: Unit, score_C: Float[Tensor, "C"]) -> Float[Tensor, "L"] | None:
    """The scores of all labels of the row, once all parts of its label words were read."""
    job = unit.job
    if job.parts is None:
        return score_C
    job.words[unit.part] = score_C[: len(job.parts.plans[unit.part].words)].clone()
    if len(job.words) < len(job.parts.plans):
        return None
    return joined(job.row.plan, job.parts, torch.cat([job.words[n] for n in range(len(job.words))])[None])[0]


def _judged(job: Labelling, score_C: Float[Tensor, "C"]) -> Judged:
    """Raises: ModelError for scores that are not numbers."""
    probability_C = score_C[: len(job.names)].softmax(-1)
    if not bool(torch.isfinite(probability_C).all()):
        raise ModelError(f"{job.entry.version.name} gave scores that are not numbers; use another --dtype.")
    found = dict(zip(job.names, probability_C.tolist(), strict=True))
    return Judged(max(found, key=found.__getitem__), found, columns(job.entry, job.row), job.row.cut)
