"""Measure how predictions depend on the demonstrations, over random draws and permutations of them.

Zhao et al. 2021, section 4: bias towards the label that most demonstrations have (majority), towards the label of the
last one (recency), and towards words that are frequent in general (common token). Each is measured before and after
contextual calibration.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foreword.core.arguments import checked
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.errors import ConfigError, DataError
from foreword.inference.calibration import HardConfig, calibrate
from foreword.methods.words.demonstrations import count_fitting, drawn, longest_rows, pool_of, put, scores_of
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat_template import frozen
from foreword.tasks.rows import Row
from foreword.tasks.task import Task

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bias:
    """Hold shares of the predictions, as fractions.

    `majority` and `recency` say how much more often a label is predicted with the prompts in which it has most
    demonstrations, or the last one, than with all prompts. `majority` is None if no prompt has a single most frequent
    label. `said` is each label's share of all predictions.
    """

    said: tuple[float, ...]
    majority: float | None
    recency: float


@dataclass(frozen=True)
class BiasReport:
    """Hold the biases before and after calibration.

    `true` is each label's share of the rows, and `prior` its probability after the premise alone, without any text or
    demonstration.
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]
    true: tuple[float, ...]
    prior: tuple[float, ...]
    before: Bias
    after: Bias
    prompts: int
    rows: int
    shown: int

    def to_json(self) -> dict[str, Any]:
        def told(bias: Bias) -> dict[str, Any]:
            said = dict(zip(self.labels, bias.said, strict=True))
            return {"said": said, "majority": bias.majority, "recency": bias.recency}

        return {
            "labels": dict(zip(self.labels, self.words, strict=True)),
            "true": dict(zip(self.labels, self.true, strict=True)),
            "prior": dict(zip(self.labels, self.prior, strict=True)),
            "before": told(self.before),
            "after": told(self.after),
            "prompts": self.prompts,
            "rows": self.rows,
            "shown": self.shown,
        }


@checked
def bias_report(
    lm: FrozenLM,
    task: Task,
    *,
    demos: int = 4,
    draws: int = 4,
    permutations: int = 4,
    rows: int = 64,
    seed: int = 0,
    form: Format | None = None,
    separator: str = "\n\n",
) -> BiasReport:
    """Measure biases on development rows after `draws` random sets of demonstrations, in `permutations` orders each.

    Raises: ConfigError for a task whose rows bring their own options, or for counts too small to compare; DataError if
    there are no labelled development rows.
    """
    if not task.labels:
        raise ConfigError("Biases are of labels, and the rows of this task bring their own options.")
    if min(demos, rows) < 1 or draws * permutations < 2:
        raise ConfigError("Biases need a demonstration, a row, and two prompts or more to compare; raise the counts.")
    form = frozen(lm.tokenizer, form or task.format(lm.kind, chat=lm.instructed, lm=lm))
    held = [row for row in task.validation if row.label is not None][:rows]
    if not held:
        raise DataError(f"{task.name!r} has no labelled development rows to measure biases on; give some.")
    rng = random.Random(f"bias {seed}")
    beside = longest_rows(lm, form, task, 1.0)
    pool = pool_of(task)
    sets = [drawn(pool, "random", rng)[:demos] for _ in range(draws)]
    count = min(count_fitting(lm, form, chosen, beside, separator) for chosen in sets)
    if not count:
        raise ConfigError("Not one demonstration fits beside the longest row, so there is no bias to measure.")
    shown = [rng.sample(chosen[:count], count) for chosen in sets for _ in range(permutations)]
    forms = [put(form, chosen, separator) for chosen in shown]
    return _report(lm, task, form, forms, shown, held)


def _report(
    lm: FrozenLM, task: Task, form: Format, forms: Sequence[Format], shown: Sequence[list[Row]], held: list[Row]
) -> BiasReport:
    free = [Row(dict.fromkeys(task.fields, text), None) for text in HardConfig().content_free.split("|")]
    score_PNC = torch.stack(scores_of(lm, forms, [*held, *free])).double().log_softmax(-1).cpu().numpy()
    logprob_PNC, free_PFC = score_PNC[:, : len(held)], score_PNC[:, len(held) :]
    calibrated_PNC = logprob_PNC - np.log(np.exp(free_PFC).mean(1, keepdims=True))
    bare = replace(form, template=form.template.without_demos())
    nothing = HardPrompt.empty()
    premise = calibrate(lm, task.with_(validation=()), HardConfig(calibrate="pmi"), form, nothing, bare)
    labels = [[row.label for row in chosen if row.label is not None] for chosen in shown]
    prior_C = np.exp(-np.array(premise.format.shift))
    true_C = np.bincount([row.label or 0 for row in held], minlength=len(task.labels)) / len(held)
    return BiasReport(
        labels=task.labels,
        words=tuple(words[0] for words in form.words),
        true=tuple(true_C.tolist()),
        prior=tuple((prior_C / prior_C.sum()).tolist()),
        before=biases(logprob_PNC.argmax(-1), labels, len(task.labels)),
        after=biases(calibrated_PNC.argmax(-1), labels, len(task.labels)),
        prompts=len(forms),
        rows=len(held),
        shown=len(shown[0]),
    )


def biases(said_PN: NDArray[np.int64], shown: Sequence[Sequence[int]], labels: int) -> Bias:
    """Compute the biases of predicted labels (prompts, rows), given the labels of each prompt's demonstrations."""
    share_PC = np.stack([np.bincount(said_N, minlength=labels) / len(said_N) for said_N in said_PN])
    mean_C = share_PC.mean(0)
    last = [share_PC[p, own[-1]] - mean_C[own[-1]] for p, own in enumerate(shown)]
    most = []
    for p, own in enumerate(shown):
        count_C = np.bincount(own, minlength=labels)
        if (count_C == count_C.max()).sum() == 1:
            most.append(share_PC[p, count_C.argmax()] - mean_C[count_C.argmax()])
    return Bias(tuple(mean_C.tolist()), float(np.mean(most)) if most else None, float(np.mean(last)))
