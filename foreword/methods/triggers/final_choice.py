"""Choose among prompts by development rows. The hand-written one takes part unless its template has slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.shapes import Float, Tensor
from foreword.inference.batched import stacked_scores
from foreword.methods.triggers.detokenise import reads_alike
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.search_space import SearchSpace
from foreword.tasks.label_metrics import accuracy, nll
from foreword.tasks.rows import Row, label_of


@final
@dataclass(frozen=True)
class FinalCandidate:
    """Hold a prompt with its development accuracy and likelihood; `prompt` is None for the manual one."""

    prompt: Prompt | None
    accuracy: float
    likelihood: float

    @property
    def rank(self) -> tuple[float, float]:
        return self.accuracy, self.likelihood


def choose(field: SearchSpace, prompts: list[Prompt]) -> tuple[list[FinalCandidate], FinalCandidate]:
    """Measure the manual prompt, then these; return all, and the best.

    The rows are the development rows, or the pool's if there are none. A tie goes to the manual prompt, then to the
    first.
    """
    job = field.job
    rows = job.task.validation or field.pool_rows
    choices = []
    if not job.format.template.slots:
        encoded = job.encoded_rows.of(field.lm, job.format, rows)
        empty = HardPrompt.empty()
        choices.append(measure(None, stacked_scores(field.lm, [empty], [encoded])[0], rows))
    encoded = job.encoded_rows.of(field.lm, field.slotted.format, rows)
    values = [HardPrompt(torch.tensor(p)) for p in prompts]
    scores = stacked_scores(field.lm, values, [encoded] * len(prompts))
    choices += [measure(p, score_NC, rows) for p, score_NC in zip(prompts, scores, strict=True)]
    return choices, max(choices, key=lambda c: c.rank)


def manual_metrics(choices: Sequence[FinalCandidate]) -> dict[str, float]:
    """Return what the manual prompt reaches; nothing if it wasn't among the choices, since its template has slots."""
    manual = next((choice for choice in choices if choice.prompt is None), None)
    return {} if manual is None else {"manual_validation_accuracy": round(manual.accuracy, 6)}


def measure(prompt: Prompt | None, score_NC: Float[Tensor, "N C"], rows: Sequence[Row]) -> FinalCandidate:
    """Return the prompt with its accuracy, which decides first, and likelihood, as wherever a best step is kept."""
    score, label = score_NC.double().cpu().numpy(), np.asarray([label_of(row) for row in rows])
    return FinalCandidate(prompt, float(accuracy(score, label)), -float(nll(score, label)))


def as_value(field: SearchSpace, prompt: Prompt) -> tuple[HardPrompt, Format]:
    """Return words in the template, if every row is then read as the tokens that were scored; else ids in slots.

    The value comes with its format.
    """
    [texts] = field.writer.texts([prompt])
    if texts is not None:
        form = field.writer.format(texts)
        rows, encoded_rows = (*field.pool_rows, *field.job.task.validation), field.job.encoded_rows
        slotted = encoded_rows.of(field.lm, field.slotted.format, rows)
        if reads_alike(slotted, prompt, encoded_rows.of(field.lm, form, rows)):
            return HardPrompt.empty(), form
    return HardPrompt(torch.tensor(prompt)), field.slotted.format
