"""Label rows: a pass takes the waiting rows of each key in turn, of as many prompts as they have."""

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from foreword.core.shapes import Float, Tensor
from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.models.label_parts import joined
from foreword.models.score import score
from foreword.serving.bank import PromptBank
from foreword.serving.fair_queue import Turns
from foreword.serving.jobs import Judging, Labelling, Unit, columns, settle
from foreword.serving.mixed_batch import attempt, mix
from foreword.serving.protocol import Judged


@final
class ByRequest:
    """Order one key's waiting units by request; requests take turns, so that one row does not wait for all rows of
    another.

    Every other unit is of a request of which nothing was read yet, so that neither these nor the long ones starve.
    """

    def __init__(self) -> None:
        self._begun: OrderedDict[Judging, deque[Unit]] = OrderedDict()
        self._fresh: OrderedDict[Judging, deque[Unit]] = OrderedDict()
        self._ahead = True
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, job: Unit) -> None:
        of = job.job.of
        if of not in self._begun:
            self._fresh.setdefault(of, deque()).append(job)
        else:
            self._begun[of].append(job)
        self._size += 1

    def head(self) -> Unit:
        first = self._fresh if self._fresh and (self._ahead or not self._begun) else self._begun
        return next(iter(first.values()))[0]

    def pop(self) -> Unit:
        unit = self.head()
        of = unit.job.of
        self._ahead = of in self._begun
        units = (self._begun if self._ahead else self._fresh).pop(of)
        units.popleft()
        self._size -= 1
        if units:
            self._begun[of] = units
        return unit

    def drop_ended(self) -> None:
        for requests in (self._begun, self._fresh):
            for of in [of for of in requests if of.result.done()]:
                self._size -= len(requests.pop(of))


@final
class WaitingRows:
    """Hold the rows that wait: keys take turns by what their rows cost, and within a key its requests take turns."""

    def __init__(self) -> None:
        self._turns: Turns[Unit] = Turns(ByRequest)

    def __len__(self) -> int:
        return len(self._turns)

    def append(self, job: Labelling) -> None:
        for unit in job.units():
            self._turns.append(unit)

    def take(self, tokens: int) -> list[Unit]:
        """Take the units whose turn it is, of `tokens` together at most, but one at least if any waits."""
        taken: list[Unit] = []
        while (unit := self._turns.next()) is not None:
            tokens -= unit.row.cost
            if taken and tokens < 0:
                break
            self._turns.take(unit)
            taken.append(unit)
        return taken


@final
@dataclass(eq=False)
class Labeller:
    """Label rows with one model on one thread. `rate` is the recent speed in rows a second."""

    lm: FrozenLM
    bank: PromptBank
    waiting: WaitingRows = field(default_factory=WaitingRows)
    batches: int = 0
    rows: int = 0
    rate: float = 0.0

    def step(self) -> None:
        """Make one pass over the rows whose turn it is, of as many prompts as they have; rows of ended requests are
        dropped."""
        taken = self.waiting.take(self.lm.batch_tokens)
        if taken:
            attempt(self._label, taken, [unit.job.of.result for unit in taken])

    def _label(self, units: Sequence[Unit]) -> None:
        began = time.monotonic()
        batch = mix(self.lm, self.bank, [(unit.job.entry, unit.row) for unit in units])
        score_BC = score(self.lm, batch.rows, batch.bank, torch.tensor(batch.task_of)).double().cpu()
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
    """Return the scores of all labels of the row, or None until all parts of its label words were read."""
    job = unit.job
    if job.parts is None:
        return score_C
    job.words[unit.part] = score_C[: len(job.parts.plans[unit.part].words)].clone()
    if len(job.words) < len(job.parts.plans):
        return None
    return joined(job.row.plan, job.parts, torch.cat([job.words[n] for n in range(len(job.words))])[None])[0]


def _judged(job: Labelling, score_C: Float[Tensor, "C"]) -> Judged:
    """Return the row's label and the probability of each. Raises: ModelError for scores that are not numbers."""
    probability_C = score_C[: len(job.names)].softmax(-1)
    if not bool(torch.isfinite(probability_C).all()):
        raise ModelError(f"{job.entry.version.name} gave scores that are not numbers; use another --dtype.")
    found = dict(zip(job.names, probability_C.tolist(), strict=True))
    return Judged(max(found, key=found.__getitem__), found, columns(job.entry, job.row), job.row.cut)
