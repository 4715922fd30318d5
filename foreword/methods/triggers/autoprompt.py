"""Search words before the answer by gradient, and verify them on a pool of rows (AutoPrompt, Shin et al. 2020)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from foreword.core.doc import Doc, documented
from foreword.core.prompts import HardPrompt
from foreword.methods.triggers import published_loop
from foreword.methods.triggers.beam_search import SearchPlan, State, Verify, descend, penalties
from foreword.methods.triggers.explanation import explained
from foreword.methods.triggers.final_choice import as_value, choose, manual_metrics
from foreword.methods.triggers.initial_prompts import Init, starts
from foreword.methods.triggers.label_word_rounds import alternate
from foreword.methods.triggers.objective import Objective
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.search_space import SearchSpace, make_field
from foreword.models.base import FrozenLM
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Amount, Count, Several, Whole

SEARCH = "search"  # the name under which a search keeps where it stands
FINALISTS = 8  # prompts that the search passed through, read on the development rows at the end


@documented
@dataclass(frozen=True)
class SearchConfig:
    """Hold the options of every search for hard prompts.

    The slots stand before the answer, in place of the template's words there. If the template has slots, those are
    searched.
    """

    length: Annotated[
        Count,
        Doc("Slots that are searched (more if the words that they replace have more tokens)."),
    ] = 5
    steps: Annotated[Count, Doc("Number of search steps.")] = 50
    pool_rows: Annotated[Several, Doc("Training rows on which every prompt is measured.")] = 200
    gradient_rows: Annotated[Count, Doc("Other training rows on which each gradient is taken.")] = 64
    objective: Annotated[
        Objective,
        Doc("What is minimised: the loss of the label among labels (class) or all tokens (likelihood), or a margin."),
    ] = "class"
    capitals: Annotated[bool, Doc("Allow tokens with capital letters.")] = True
    non_ascii: Annotated[bool, Doc("Allow tokens with other than ASCII characters.")] = True
    words: Annotated[
        bool, Doc("Allow only prompts whose text is read back as their tokens (false: keep others as ids).")
    ] = True


@documented
@dataclass(frozen=True)
class AutoPromptConfig(SearchConfig):
    """Hold the options of AutoPrompt.

    With `label_words` set to search, label words and prompt are searched in turn, in `rounds` that share the steps.
    """

    variant: Annotated[
        Literal["foreword", "paper"],
        Doc("The search of this library, or the published loop: one random slot, new batches, and accuracy decides."),
    ] = "foreword"
    candidates: Annotated[Count, Doc("Swaps that each step measures.")] = 48
    init: Annotated[Init, Doc("Which initial prompts are compared on the pool.")] = "best"
    beam: Annotated[Count, Doc("Best prompts that are kept after each step.")] = 1
    patience: Annotated[Whole, Doc("Steps without a better prompt after which the search starts again.")] = 4
    restarts: Annotated[Whole, Doc("How often the search may start again.")] = 1
    swaps: Annotated[Count, Doc("Slots that may change at once in the first steps.")] = 2
    fluency: Annotated[Amount, Doc("Weight of the prompt's own negative log-likelihood.")] = 0.0
    verify: Annotated[
        Verify,
        Doc("How swaps are measured: race drops losers, all reads every row, halving begins with a quarter."),
    ] = "race"
    accumulation: Annotated[Count, Doc("Batches of 32 rows in each gradient of the published loop.")] = 10
    label_words: Annotated[Literal["given", "search"], Doc("Take the label words given, or search them too.")] = "given"
    rounds: Annotated[Whole, Doc("Rounds of prompt and label words.")] = 1


class AutoPrompt(DirectMethod):
    name = "autoprompt"
    summary = "words before the answer, searched by gradient and verified"
    source = "Shin et al. 2020"
    Config = AutoPromptConfig
    form = "hard"
    resumes = True
    mixed_batch = True
    freezes_lm = True

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        lm.require_gradient()
        config: AutoPromptConfig = job.config
        search = _as_published if config.variant == "paper" else _search
        if config.label_words == "search":
            return alternate(lm, job, state, search, config.rounds)
        return search(lm, job, state)


def _search(lm: FrozenLM, job: Job, state: SearchState) -> Made:
    config: AutoPromptConfig = job.config
    steps = max(1, config.steps // config.rounds)
    field = make_field(lm, job, config)
    plan = SearchPlan(
        steps, config.candidates, config.beam, config.patience, config.restarts, config.swaps, config.fluency,
        config.verify,
    )  # fmt: skip
    stored = state.get(SEARCH)
    if stored is None:
        begun = starts(field, config.init)
        costs = penalties(field, plan, [p for p, _ in begun.values()])
        losses = {name: loss + cost for (name, (_, loss)), cost in zip(begun.items(), costs, strict=True)}
        chosen = min(losses, key=losses.__getitem__)
        beam, begin = State.at(begun[chosen][0], losses[chosen]), {"losses": losses, "chosen": chosen}
    else:
        beam, begin = State.from_json(stored["beam"]), stored["starts"]
    state.begin(beam.step)

    def after(beam: State) -> None:
        state.put({SEARCH: {"beam": beam.to_json(), "starts": begin}})
        state.report(beam.step, config.steps, beam.best[1], beam.read)

    descend(field, plan, beam, after)
    return _best_finalist(field, beam, begin)


def _best_finalist(field: SearchSpace, state: State, begin: dict[str, Any]) -> Made:
    """Return the finalist that does best on the validation rows, or the manual prompt if none beats it."""
    step = max(1, -(-len(state.passed) // FINALISTS))
    finalists = list(dict.fromkeys([p for p, _ in state.passed[::-1][::step]] + [state.passed[0][0]]))
    choices, chosen = choose(field, finalists)
    metrics: dict[str, Any] = {
        "searches": len(state.left),
        "left_their_start": sum(state.left),
        "pool_loss": round(state.best[1], 6),
        "rows_read": state.read,
        "kept": "manual" if chosen.prompt is None else "found",
        **manual_metrics(choices),
    }
    trace: dict[str, Any] = {"starts": begin, "steps": state.trace}
    best = state.best[0] if chosen.prompt is None else chosen.prompt
    trace["prompt"] = explained(field, best)
    if chosen.prompt is None:
        empty = HardPrompt.empty()
        return Made(empty, field.job.format, 0, metrics, trace)
    value, form = as_value(field, chosen.prompt)
    return Made(value, form, field.slotted.length, metrics, trace)


def _as_published(lm: FrozenLM, job: Job, state: SearchState) -> Made:
    config: AutoPromptConfig = job.config
    field = make_field(lm, job, config, everything=True)

    def development(prompt: Prompt) -> float:
        return choose(field, [prompt])[0][-1].accuracy

    rows = published_loop.PaperRows(field, config.accumulation, development)
    stored = state.get(SEARCH)
    first = published_loop.first_prompt(field)
    loop = published_loop.PaperState(first, first) if stored is None else published_loop.PaperState.from_json(stored)
    state.begin(loop.step)
    while loop.step < config.steps:
        published_loop.paper_step(rows, loop, config.candidates)
        state.put({SEARCH: loop.to_json()})
        state.report(loop.step, config.steps, (loop.trace or [{}])[-1].get("loss", float("nan")), loop.read)
    metrics = {"searches": 1, "left_their_start": int(loop.accepted > 0), "rows_read": loop.read, "kept": "found"}
    trace = {"steps": loop.trace or [], "prompt": explained(field, loop.kept)}
    value, form = as_value(field, loop.kept)
    return Made(value, form, field.slotted.length, metrics, trace)
