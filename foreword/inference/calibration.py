"""Calibrate label scores with a shift for each label and a temperature, from scores that are read once.

With p(c|x) the model's probability of label c, a rule subtracts the log-probability of c for no text in particular:

    contextual  the log of p's mean over content-free texts in the row's place (Zhao et al. 2021, section 5)
    pmi         log p after the template's own words alone, the domain's premise (Holtzman et al. 2021, eq. 4)
    batch       the mean of log p over rows whose labels are not looked at (Zhou et al. 2024)

The best rule differs between tasks, so "auto" chooses on development rows; no calibration is one of its choices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch

from foreword.core.doc import Doc, documented
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.shapes import Float, Tensor
from foreword.core.template import Field, Template, Turn, joined
from foreword.core.values import Ensemble, Learnt, Member
from foreword.errors import ConfigError, DataError
from foreword.inference.features import EncodedRows
from foreword.inference.scoring import ScoreRequest, score_readings
from foreword.models.base import FrozenLM
from foreword.tasks.label_metrics import accuracy, nll
from foreword.tasks.rows import Row
from foreword.tasks.task import Task


@documented
@dataclass(frozen=True)
class HardConfig:
    """Hold the options of every method whose prompt is words: how its scores are calibrated afterwards."""

    calibrate: Annotated[
        Literal["none", "contextual", "pmi", "batch", "auto"],
        Doc("How label scores are corrected; auto chooses a rule, or none, on the validation rows."),
    ] = "none"
    temperature: Annotated[bool, Doc("Fit a temperature of the scores on the validation rows.")] = False
    content_free: Annotated[str, Doc("Texts without content for the rule contextual, separated by |.")] = "N/A||[MASK]"
    premise: Annotated[
        str | None, Doc("Text that stands for the domain in the rule pmi (none: the template without its fields).")
    ] = None


Rule = Literal["none", "contextual", "pmi", "batch"]
RULES: tuple[Rule, ...] = get_args(Rule)
COLDEST, HOTTEST = 0.02, 50.0


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Hold a learnt value with calibrated scores, the development rows' scores, and notes on the choice of the rule."""

    value: Learnt
    format: Format
    notes: dict[str, Any]
    development: Float[Tensor, "N C"] | None


def calibrate(
    lm: FrozenLM,
    task: Task,
    config: HardConfig,
    asked: Format,
    value: Learnt,
    form: Format,
    encoded_rows: EncodedRows | None = None,
) -> Calibrated:
    """Calibrate a learnt value as the config says; `asked` is the format before anything was learnt.

    Every text is read once, in mixed batches, for all rules that are tried and all members of an ensemble.

    Raises: ConfigError for a rule that these rows cannot have, naming what is missing.
    """
    if task.metric:
        if config.calibrate != "none" or config.temperature:
            raise ConfigError(
                f"calibrate and temperature change the scores of labels, and {task.name!r} is answered in text; leave "
                "them out."
            )
        return Calibrated(value, form, {}, None)
    members = [Member(*part) for part in value.parts(form)]
    rules = _rules(task, config)
    read = _read(lm, task, config, asked, members, rules, encoded_rows)
    rows = task.validation
    tried: dict[Rule, tuple[tuple[Member, ...], Tensor | None]] = {}
    for rule in rules:
        tried[rule] = _apply(rule, value, members, read, config, rows, _premise(config, asked).source)
    measured = {rule: scores_measured(score, rows) for rule, (_, score) in tried.items() if score is not None}
    chosen: Rule = rules[0]
    if len(rules) > 1:
        chosen = max(rules, key=lambda r: (measured[r]["accuracy"], -measured[r]["nll"], -rules.index(r)))
    own, score = tried[chosen]
    notes: dict[str, Any] = {}
    if config.calibrate != "none" or config.temperature:
        told = {"rule": chosen, "asked": config.calibrate}
        if config.temperature:
            told |= {"temperature": own[0].format.temperature}
        notes["calibration"] = told
    if len(rules) > 1:
        notes |= {f"calibration_{name}": {r: m[name] for r, m in measured.items()} for name in ("accuracy", "nll")}
    if isinstance(value, Ensemble):
        return Calibrated(replace(value, members=own), form, notes, score)
    return Calibrated(own[0].value, own[0].format, notes, score)


def apply(score_NC: Float[Tensor, "N C"], form: Format) -> Float[Tensor, "N C"]:
    """Calibrate scores that were read without calibration as the format says, exactly as `models.score` does."""
    if form.shift:
        score_NC = score_NC + torch.tensor(form.shift, dtype=torch.float64).to(score_NC)
    return score_NC / form.temperature


def _rules(task: Task, config: HardConfig) -> tuple[Rule, ...]:
    """Return the rules to try. Raises: ConfigError for a rule that these rows cannot have."""
    asked = config.calibrate
    labelled = [row for row in task.validation if row.label is not None]
    if (asked == "auto" or config.temperature) and not labelled:
        what = "calibrate=auto chooses" if asked == "auto" else "temperature=true is fitted"
        raise ConfigError(f"{what} on labelled development rows, and {task.name!r} has none; give validation rows.")
    if not task.labels:
        if asked in ("contextual", "batch"):
            raise ConfigError(
                f"calibrate={asked} takes off one number a label, and the rows of {task.name!r} bring their own "
                "options; use calibrate=pmi, which reads each row's options after the premise alone, or none."
            )
        return ("none", "pmi") if asked == "auto" else (asked,)
    if asked == "batch" and not task.validation:
        raise ConfigError(
            f"calibrate=batch needs development rows, whose labels it does not look at, and {task.name!r} has none."
        )
    return RULES if asked == "auto" else (asked,)


@dataclass(frozen=True, eq=False)
class _Read:
    """Hold one member's uncalibrated scores of development rows, content-free rows and the premise, as needed."""

    rows: Tensor | None
    free: Tensor | None
    premise: Tensor | None


def _read(
    lm: FrozenLM,
    task: Task,
    config: HardConfig,
    asked: Format,
    members: Sequence[Member],
    rules: Sequence[Rule],
    encoded_rows: EncodedRows | None,
) -> list[_Read]:
    readings: list[ScoreRequest] = []
    fields = tuple(task.fields)
    wanted: list[tuple[str, Callable[[Member], ScoreRequest]]] = []
    if task.validation:
        wanted.append(("rows", lambda m: ScoreRequest(m.value, _bare(m.format), task.validation, fields, encoded_rows)))
    if "contextual" in rules:
        free = [Row(dict.fromkeys(fields, text), None, (), "the content-free text") for text in _texts(config)]
        wanted.append(("free", lambda m: ScoreRequest(m.value, _bare(m.format), free, fields)))
    if "pmi" in rules:
        put = _premise(config, asked)
        nothing = HardPrompt.empty()
        own = task.validation if not task.labels else [Row({}, None, (), "the premise")]
        wanted.append(("premise", lambda m: ScoreRequest(nothing, replace(_bare(m.format), template=put), own, ())))
    for member in members:
        readings += [make(member) for _, make in wanted]
    try:
        scores = iter(score_readings(lm, readings))
    except DataError as error:
        if "pmi" not in rules or "the premise" not in str(error):
            raise
        raise ConfigError(
            f"calibrate=pmi has no words to stand for the domain: the template {asked.template.source!r} has none but "
            "its fields; give some, as -o premise='It was {answer}'."
        ) from error
    found = [{name: next(scores) for name, _ in wanted} for _ in members]
    return [_Read(own.get("rows"), own.get("free"), own.get("premise")) for own in found]


def _bare(form: Format) -> Format:
    return replace(form, shift=(), temperature=1.0, calibration="none", premise=None)


def _texts(config: HardConfig) -> list[str]:
    return config.content_free.split("|")


def _premise(config: HardConfig, asked: Format) -> Template:
    """Return the template's words without fields, or the config's premise. Raises: ConfigError for one with a field."""
    if config.premise is not None:
        given = Template.parse(config.premise)
        if given.fields or given.slots:
            raise ConfigError(
                f"premise={config.premise!r} has fields or slots; it is words alone, as 'It was {{mask}}'."
            )
        return given
    turns = asked.template.without_soft().without_demos().turns
    return Template(tuple(Turn(t.role, joined([p for p in t.parts if not isinstance(p, Field)])) for t in turns))


def _apply(
    rule: Rule,
    value: Learnt,
    members: Sequence[Member],
    read: Sequence[_Read],
    config: HardConfig,
    rows: Sequence[Row],
    premise: Any,
) -> tuple[tuple[Member, ...], Tensor | None]:
    """Return each member with its format under this rule, and the development rows' scores under all of them."""
    made, scores = [], []
    for member, own in zip(members, read, strict=True):
        form = replace(_bare(member.format), calibration=rule, shift=_shift(rule, own) if member.format.labels else ())
        score = own.rows
        if rule == "pmi" and not form.labels:
            form = replace(form, premise=premise)
            if score is not None and own.premise is not None:
                score = torch.where(score.isneginf(), score, score - own.premise)
        elif score is not None:
            score = apply(score, form)
        if config.temperature and score is not None:
            hot = fit_temperature(score, [row.label for row in rows])
            form, score = replace(form, temperature=hot), score / hot
        made.append(replace(member, format=form))
        scores.append(score)
    whole = None
    if scores[0] is not None:
        whole = value.combined(scores)
    return tuple(made), whole


def _shift(rule: Rule, read: _Read) -> tuple[float, ...]:
    """Return what is added to each label's log-score; nothing for the rule "none"."""
    if rule == "contextual":
        assert read.free is not None
        prior_C = read.free.double().softmax(-1).mean(0).log()
    elif rule == "pmi":
        assert read.premise is not None
        prior_C = read.premise.double()[0].log_softmax(-1)
    elif rule == "batch":
        assert read.rows is not None
        prior_C = read.rows.double().log_softmax(-1).mean(0)
    else:
        return ()
    return label_shift(prior_C)


def label_shift(prior_C: Float[Tensor, "C"]) -> tuple[float, ...]:
    """Return the shift that subtracts these log-probabilities, those of the labels for no text in particular."""
    return tuple((-prior_C).tolist())


def fit_temperature(score_NC: Float[Tensor, "N C"], labels: Sequence[int | None]) -> float:
    """Return the temperature with the least negative log-likelihood (Guo et al. 2017), between 0.02 and 50.

    The loss is convex in the inverse temperature, so ternary search finds it.
    """
    known = [i for i, label in enumerate(labels) if label is not None]
    score = score_NC[known].double().cpu().numpy()
    label = np.array([labels[i] for i in known])
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(100):
        third = (high - low) / 3
        if nll(score * (low + third), label) <= nll(score * (high - third), label):
            high -= third
        else:
            low += third
    return round(2 / (low + high), 6)


def scores_measured(score_NC: Tensor, rows: Sequence[Row]) -> Mapping[str, float]:
    """Return accuracy and negative log-likelihood over the rows that have labels; 0 for both if none has."""
    labelled = [i for i, row in enumerate(rows) if row.label is not None]
    if not labelled:
        return {"accuracy": 0.0, "nll": 0.0}
    score, label = score_NC[labelled].double().cpu().numpy(), np.array([rows[i].label for i in labelled])
    return {"accuracy": round(accuracy(score, label), 6), "nll": round(nll(score, label), 6)}
