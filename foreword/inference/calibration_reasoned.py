"""Calibrate label words that are scored after a model's own reasoning, by the rules of `inference.calibration`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.shapes import Float, Tensor
from foreword.core.values import Learnt
from foreword.errors import ConfigError
from foreword.inference.calibration import Rule, apply, label_shift, scores_measured
from foreword.inference.reasoning import reasoned_scores
from foreword.models.base import FrozenLM
from foreword.tasks.rows import Row
from foreword.tasks.task import Task

RULES: tuple[Rule, ...] = ("none", "contextual", "batch")  # a premise alone has nothing to reason about


def calibrate_reasoned(
    lm: FrozenLM, task: Task, value: Learnt, form: Format, asked: str, content_free: str
) -> tuple[Format, dict[str, Any]]:
    """Return the format with its shift, and notes on the choice of the rule. Each row is reasoned about once.

    Raises: ConfigError if the rows lack what the rule needs, or no label words are scored after the reasoning.
    """
    if asked == "none":
        return form, {}
    if form.decoding is None or form.decoding.conclude is None or not task.labels:
        raise ConfigError(
            f"chain-of-thought: calibrate={asked} changes the scores of label words; give extract=score, and a task "
            "whose rows share their labels."
        )
    labelled = any(row.label is not None for row in task.validation)
    if (asked == "auto" and not labelled) or (asked == "batch" and not task.validation):
        raise ConfigError(
            f"chain-of-thought: calibrate={asked} needs development rows, and {task.name!r} has none; give some."
        )
    free = [Row(dict.fromkeys(task.fields, text), None, (), "content-free") for text in content_free.split("|")]
    read = _read(lm, value, form, [*free, *task.validation])
    prior, rows = read[: len(free)], read[len(free) :]
    tried = {}
    for rule in RULES if asked == "auto" else (asked,):
        typical_C = prior.exp().mean(0).log() if rule == "contextual" else rows.mean(0)
        shift = () if rule == "none" else label_shift(typical_C)
        made = replace(form, shift=shift, calibration=rule)
        tried[rule] = made, scores_measured(apply(rows, made), task.validation)
    chosen = max(tried, key=lambda rule: (tried[rule][1]["accuracy"], -tried[rule][1]["nll"]))
    notes: dict[str, Any] = {"calibration": {"rule": chosen, "asked": asked}}
    if len(tried) > 1:
        notes |= {f"calibration_{name}": {r: m[name] for r, (_, m) in tried.items()} for name in ("accuracy", "nll")}
    return tried[chosen][0], notes


def _read(lm: FrozenLM, value: Learnt, form: Format, rows: Sequence[Row]) -> Float[Tensor, "N C"]:
    """Return the log-probabilities of the labels (rows, labels) after the model's reasoning."""
    made = Artefact(value, form, "chain-of-thought", {}, 0, {"name": lm.name, "kind": lm.kind}, {})
    return reasoned_scores(lm, [(made, rows)])[0].double().log_softmax(-1)
