"""AutoPrompt: words in front of the answer, found by gradient-guided search (Shin et al. 2020) and verified on a pool."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.methods.base import Found, Job, Notebook, SearchMethod
from foreword.methods.predict import encode_rows
from foreword.methods.stack import stacked_scores
from foreword.methods.trigger import paper
from foreword.methods.trigger.descent import Plan, State, Verify, descend, penalties
from foreword.methods.trigger.field import Field, label_of, make_field
from foreword.methods.trigger.objective import Objective
from foreword.methods.trigger.slots import Prompt
from foreword.methods.trigger.starts import Init, starts
from foreword.methods.trigger.trace import explained
from foreword.methods.trigger.words import reads_alike
from foreword.models.base import FrozenLM
from foreword.tasks.metrics import accuracy, nll
from foreword.tasks.rows import Row

FINALISTS = 8  # prompts that the search passed through, read on the development rows at the end


@dataclass(frozen=True)
class SearchConfig:
    """What searches for words share.

    `length` slots stand before the answer in place of the template's words there (more if those have more pieces); a
    template's own slots say their number. Prompts are measured on a fixed `pool_rows` of the training rows, gradients
    are taken on `gradient_rows` others. `objective`: the label words' share among all labels' ("class"), among the whole
    vocabulary ("likelihood", the paper's), or a "margin". `capitals` and `non_ascii` false leave such tokens out;
    `words` false allows prompts whose text is not read as their tokens, which are then kept as ids.
    """

    length: int = 5
    steps: int = 50
    pool_rows: int = 200
    gradient_rows: int = 64
    objective: Objective = "class"
    capitals: bool = True
    non_ascii: bool = True
    words: bool = True


@dataclass(frozen=True)
class AutoPromptConfig(SearchConfig):
    """Each of `steps` measures `candidates` swaps. The `beam` best prompts are kept; after `patience` steps without a
    better one the search begins anew, `restarts` times. Up to `swaps` slots change at once in the first steps.
    `fluency` weighs the words' own cost. `verify`: "race" drops what cannot win any more, "all" reads everything,
    "halving" a quarter. `init` says which starts are compared on the pool.

    `variant` "paper" is the published loop: `accumulation` batches of 32 a gradient, one random slot, accuracy decides.
    """

    variant: Literal["foreword", "paper"] = "foreword"
    candidates: int = 48
    init: Init = "best"
    beam: int = 1
    patience: int = 4
    restarts: int = 1
    swaps: int = 2
    fluency: float = 0.0
    verify: Verify = "race"
    accumulation: int = 10


class AutoPrompt(SearchMethod):
    name = "autoprompt"
    summary = "words before the answer, searched by gradient and verified"
    source = "Shin et al. 2020"
    Config = AutoPromptConfig
    form = "hard"
    mixed_batch = True
    freezes_lm = True

    def search(self, lm: FrozenLM, job: Job, notebook: Notebook) -> Found:
        lm.require_gradient()
        config: AutoPromptConfig = job.config
        if config.variant == "paper":
            return _as_published(lm, job, notebook)
        field = make_field(lm, job, config)
        plan = Plan(
            config.steps, config.candidates, config.beam, config.patience, config.restarts, config.swaps,
            config.fluency, config.verify,
        )  # fmt: skip
        kept = notebook.kept()
        if kept is None:
            begun = starts(field, config.init)
            costs = penalties(field, plan, [p for p, _ in begun.values()])
            losses = {name: loss + cost for (name, (_, loss)), cost in zip(begun.items(), costs, strict=True)}
            chosen = min(losses, key=losses.__getitem__)
            state, begin = State.at(begun[chosen][0], losses[chosen]), {"losses": losses, "chosen": chosen}
        else:
            state, begin = State.from_json(kept["search"]), kept["starts"]

        def after(state: State) -> None:
            notebook.keep({"step": state.step, "search": state.to_json(), "starts": begin})
            notebook.tell(state.step, config.steps, state.best[1], state.read)

        descend(field, plan, state, after)
        return _found(field, state, begin)


@dataclass(frozen=True)
class Choice:
    """A prompt with its development accuracy and likelihood; `prompt` is None for the manual one."""

    prompt: Prompt | None
    accuracy: float
    likelihood: float

    @property
    def rank(self) -> tuple[float, float]:
        return self.accuracy, self.likelihood


def _found(field: Field, state: State, begin: dict[str, Any]) -> Found:
    """The finalist that does best on development rows; the manual prompt where none beats it."""
    step = max(1, -(-len(state.passed) // FINALISTS))
    finalists = list(dict.fromkeys([p for p, _ in state.passed[::-1][::step]] + [state.passed[0][0]]))
    choices, chosen = choose(field, finalists)
    manual = choices[0]
    metrics: dict[str, Any] = {
        "searches": len(state.left),
        "left_their_start": sum(state.left),
        "pool_loss": round(state.best[1], 6),
        "rows_read": state.read,
        "kept": "manual" if chosen.prompt is None else "found",
        "manual_validation_accuracy": round(manual.accuracy, 6),
    }
    trace: dict[str, Any] = {"starts": begin, "steps": state.trace}
    best = state.best[0] if chosen.prompt is None else chosen.prompt
    trace["prompt"] = explained(field, best)
    if chosen.prompt is None:
        empty = HardPrompt(torch.zeros(0, dtype=torch.long))
        return Found(empty, field.job.format, 0, metrics, trace)
    value, form = as_value(field, chosen.prompt)
    return Found(value, form, field.slotted.length, metrics, trace)


def choose(field: Field, prompts: list[Prompt]) -> tuple[list[Choice], Choice]:
    """The manual prompt first, then these, measured on the development rows (the pool where there are none); and the
    best. A tie goes to the manual prompt, then to the first."""
    job = field.job
    rows = job.task.validation or field.pool_rows
    choices = []
    if not job.format.template.slots:
        encoded = encode_rows(field.lm, job.format, rows)
        empty = HardPrompt(torch.zeros(0, dtype=torch.long))
        choices.append(_choice(None, stacked_scores(field.lm, [empty], [encoded])[0], rows))
    encoded = field.slotted.encoder.encode_rows(rows)
    values = [HardPrompt(torch.tensor(p)) for p in prompts]
    scores = stacked_scores(field.lm, values, [encoded] * len(prompts))
    choices += [_choice(p, score_NC, rows) for p, score_NC in zip(prompts, scores, strict=True)]
    return choices, max(choices, key=lambda c: c.rank)


def _choice(prompt: Prompt | None, score_NC: torch.Tensor, rows: tuple[Row, ...]) -> Choice:
    score, label = score_NC.double().cpu().numpy(), np.asarray([label_of(row) for row in rows])
    return Choice(prompt, float(accuracy(score, label)), -float(nll(score, label)))


def as_value(field: Field, prompt: Prompt) -> tuple[HardPrompt, Format]:
    """Words in the template, where every row is then read as the tokens that were scored; else ids in slots."""
    [texts] = field.writer.texts([prompt])
    if texts is not None:
        form = field.writer.format(texts)
        rows = (*field.pool_rows, *field.job.task.validation)
        encoded = [*field.encoded, *field.slotted.encoder.encode_rows(field.job.task.validation)]
        if reads_alike(field.lm, form, rows, encoded, prompt):
            return HardPrompt(torch.zeros(0, dtype=torch.long)), form
    return HardPrompt(torch.tensor(prompt)), field.slotted.format


def _as_published(lm: FrozenLM, job: Job, notebook: Notebook) -> Found:
    config: AutoPromptConfig = job.config
    field = make_field(lm, job, config, everything=True)

    def development(prompt: Prompt) -> float:
        return choose(field, [prompt])[0][-1].accuracy

    rows = paper.PaperRows(field, config.accumulation, development)
    kept = notebook.kept()
    first = paper.first_prompt(field)
    state = paper.PaperState(first, first) if kept is None else paper.PaperState.from_json(kept["search"])
    while state.step < config.steps:
        paper.paper_step(rows, state, config.candidates)
        notebook.keep({"step": state.step, "search": state.to_json()})
        notebook.tell(state.step, config.steps, (state.trace or [{}])[-1].get("loss", float("nan")), state.read)
    metrics = {"searches": 1, "left_their_start": int(state.accepted > 0), "rows_read": state.read, "kept": "found"}
    trace = {"steps": state.trace or [], "prompt": explained(field, state.kept)}
    value, form = as_value(field, state.kept)
    return Found(value, form, field.slotted.length, metrics, trace)
