"""AutoPrompt: words before the answer, found by gradient-guided search (Shin et al. 2020), verified on a pool."""

from dataclasses import dataclass
from typing import Any, Literal

from foreword.core.prompts import HardPrompt
from foreword.methods.triggers import published_loop
from foreword.methods.triggers.beam_search import Plan, State, Verify, descend, penalties
from foreword.methods.triggers.explanation import explained
from foreword.methods.triggers.final_choice import as_value, choose
from foreword.methods.triggers.initial_prompts import Init, starts
from foreword.methods.triggers.label_word_rounds import alternate
from foreword.methods.triggers.objective import Objective
from foreword.methods.triggers.search_space import Field, make_field
from foreword.methods.triggers.slots import Prompt
from foreword.models.base import FrozenLM
from foreword.training.contract import Ended, Job, Notebook, StepwiseMethod
from foreword.training.options import Amount, Count, Several, Whole

FINALISTS = 8  # prompts that the search passed through, read on the development rows at the end


@dataclass(frozen=True)
class SearchConfig:
    """What searches for words share.

    `length` slots stand before the answer in place of the template's words there (more if those have more pieces); a
    template's own slots say their number. Prompts are measured on a fixed `pool_rows` of the training rows, gradients
    are taken on `gradient_rows` others. `objective`: the label words' share among all labels' ("class"), among all the
    vocabulary ("likelihood", the paper's), or a "margin". `capitals` and `non_ascii` false leave such tokens out;
    `words` false allows prompts whose text is not read as their tokens, which are then kept as ids.
    """

    length: Count = 5
    steps: Count = 50
    pool_rows: Several = 200
    gradient_rows: Count = 64
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

    `label_words` "search" also finds words for the labels, in turn with the prompt, in `rounds` that share the steps.
    `variant` "paper" is the published loop: `accumulation` batches of 32 a gradient, one random slot, and
    accuracy decides.
    """

    variant: Literal["foreword", "paper"] = "foreword"
    candidates: Count = 48
    init: Init = "best"
    beam: Count = 1
    patience: Whole = 4
    restarts: Whole = 1
    swaps: Count = 2
    fluency: Amount = 0.0
    verify: Verify = "race"
    accumulation: Count = 10
    label_words: Literal["given", "search"] = "given"
    rounds: Whole = 1


class AutoPrompt(StepwiseMethod):
    name = "autoprompt"
    summary = "words before the answer, searched by gradient and verified"
    source = "Shin et al. 2020"
    Config = AutoPromptConfig
    form = "hard"
    mixed_batch = True
    freezes_lm = True

    def search(self, lm: FrozenLM, job: Job, notebook: Notebook) -> Ended:
        lm.require_gradient()
        config: AutoPromptConfig = job.config
        search = _as_published if config.variant == "paper" else _search
        if config.label_words == "search":
            return alternate(lm, job, notebook, search, config.rounds)
        return search(lm, job, notebook)


def _search(lm: FrozenLM, job: Job, notebook: Notebook) -> Ended:
    config: AutoPromptConfig = job.config
    steps = max(1, config.steps // config.rounds)
    field = make_field(lm, job, config)
    plan = Plan(
        steps, config.candidates, config.beam, config.patience, config.restarts, config.swaps, config.fluency,
        config.verify,
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


def _found(field: Field, state: State, begin: dict[str, Any]) -> Ended:
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
        empty = HardPrompt.empty()
        return Ended(empty, field.job.format, 0, metrics, trace)
    value, form = as_value(field, chosen.prompt)
    return Ended(value, form, field.slotted.length, metrics, trace)


def _as_published(lm: FrozenLM, job: Job, notebook: Notebook) -> Ended:
    config: AutoPromptConfig = job.config
    field = make_field(lm, job, config, everything=True)

    def development(prompt: Prompt) -> float:
        return choose(field, [prompt])[0][-1].accuracy

    rows = published_loop.PaperRows(field, config.accumulation, development)
    kept = notebook.kept()
    first = published_loop.first_prompt(field)
    state = (
        published_loop.PaperState(first, first) if kept is None else published_loop.PaperState.from_json(kept["search"])
    )
    while state.step < config.steps:
        published_loop.paper_step(rows, state, config.candidates)
        notebook.keep({"step": state.step, "search": state.to_json()})
        notebook.tell(state.step, config.steps, (state.trace or [{}])[-1].get("loss", float("nan")), state.read)
    metrics = {"searches": 1, "left_their_start": int(state.accepted > 0), "rows_read": state.read, "kept": "found"}
    trace = {"steps": state.trace or [], "prompt": explained(field, state.kept)}
    value, form = as_value(field, state.kept)
    return Ended(value, form, field.slotted.length, metrics, trace)
