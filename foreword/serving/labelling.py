"""Rows to be labelled: a pass takes those of each key in turn, of as many prompts as they have."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.models.score import score
from foreword.serving.bank import PromptBank
from foreword.serving.jobs import Labelling, columns, settle
from foreword.serving.mixed import attempt, mixed_bank
from foreword.serving.turns import Turns
from foreword.serving.work import Judged


@final
@dataclass(eq=False)
class Labeller:
    """Of one model and one thread. `rate` is in rows a second, of late."""

    lm: FrozenLM
    bank: PromptBank
    waiting: Turns[Labelling] = field(default_factory=Turns[Labelling])
    batches: int = 0
    rows: int = 0
    rate: float = 0.0

    def step(self) -> None:
        """One pass over the rows whose turn it is, of as many prompts as they have. Who has ended is dropped."""
        taken: list[Labelling] = []
        tokens = 0
        while (job := self.waiting.next()) is not None:
            if taken and tokens + job.row.cost > self.lm.batch_tokens:
                break
            tokens += job.row.cost
            self.waiting.take(job)
            taken.append(job)
        if taken:
            attempt(self._label, taken, [job.of.result for job in taken])

    def _label(self, jobs: Sequence[Labelling]) -> None:
        began = time.monotonic()
        bank, task_of, led = mixed_bank(self.lm, self.bank, [(job.entry, job.row) for job in jobs])
        rows = [job.row.without_lead() if alone else job.row for job, alone in zip(jobs, led, strict=True)]
        score_BC = score(self.lm, rows, bank, torch.tensor(task_of)).double().cpu()
        judged: list[Judged] = []
        for job, score_C in zip(jobs, score_BC, strict=True):
            probability_C = score_C[: len(job.names)].softmax(-1)
            if not bool(torch.isfinite(probability_C).all()):
                raise ModelError(f"{job.entry.version.name} gave scores that are not numbers; use another --dtype.")
            found = dict(zip(job.names, probability_C.tolist(), strict=True))
            label = max(found, key=found.__getitem__)
            judged.append(Judged(label, found, columns(job.entry, job.row), job.row.cut))
        for job, one in zip(jobs, judged, strict=True):
            job.of.found[job.index] = one
            job.of.left -= 1
            if not job.of.left:
                settle(job.of.result, [done for done in job.of.found if done is not None])
        self.batches += 1
        self.rows += len(jobs)
        rate = len(jobs) / max(1e-6, time.monotonic() - began)
        self.rate = 0.8 * self.rate + 0.2 * rate if self.rate else rate
