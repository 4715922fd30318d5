"""Search prompts: make swaps that lower the pool's loss, keep a beam, and begin again elsewhere when nothing does."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

from foreword.methods.triggers.fluency import fluency
from foreword.methods.triggers.gradients import embeddings_of, first_order, slot_gradient
from foreword.methods.triggers.initial_prompts import random_prompt
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.search_space import SearchSpace
from foreword.methods.triggers.selection_rows import PromptScore
from foreword.methods.triggers.swaps import SwappedPrompt, propose

Verify = Literal["race", "all", "halving"]


@dataclass(frozen=True)
class SearchPlan:
    """Hold the options of a search: see `autoprompt.SearchConfig`, whose options these are."""

    steps: int
    candidates: int
    beam: int
    patience: int
    restarts: int
    swaps: int
    fluency: float
    verify: Verify


@final
@dataclass(eq=False)
class State:
    """Hold all that a search needs to go on. Random draws follow from the seed and the step alone.

    `beam` are prompts with their losses, the best first, `spent` those of them whose candidates have run out. `known`
    are measured prompts. `passed` are the best prompts in the order they were found. `left` says of each start whether
    the search left it.
    """

    beam: list[tuple[Prompt, float]]
    best: tuple[Prompt, float]
    step: int = 0
    misses: int = 0
    spent: set[Prompt] = field(default_factory=set)
    known: dict[Prompt, PromptScore] = field(default_factory=dict)
    passed: list[tuple[Prompt, float]] = field(default_factory=list)
    left: list[bool] = field(default_factory=lambda: [False])
    trace: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    done: bool = False

    @staticmethod
    def at(start: Prompt, loss: float) -> "State":
        return State([(start, loss)], (start, loss), known={start: PromptScore(loss, True)}, passed=[(start, loss)])

    def to_json(self) -> dict[str, Any]:
        return {
            **{k: getattr(self, k) for k in ("step", "misses", "left", "trace", "read", "done")},
            "best": [list(self.best[0]), self.best[1]],
            "beam": [[list(p), loss] for p, loss in self.beam],
            "spent": sorted(map(list, self.spent)),
            "known": [[list(p), m.loss if math.isfinite(m.loss) else None, m.whole] for p, m in self.known.items()],
            "passed": [[list(p), loss] for p, loss in self.passed],
        }

    @staticmethod
    def from_json(kept: dict[str, Any]) -> "State":
        def pairs(name: str) -> list[tuple[Prompt, float]]:
            return [(tuple(p), loss) for p, loss in kept[name]]

        return State(
            beam=pairs("beam"),
            best=(tuple(kept["best"][0]), kept["best"][1]),
            spent={tuple(p) for p in kept["spent"]},
            known={tuple(p): PromptScore(math.inf if loss is None else loss, w) for p, loss, w in kept["known"]},
            passed=pairs("passed"),
            **{k: kept[k] for k in ("step", "misses", "left", "trace", "read", "done")},
        )


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """Hold prompts that need not be measured again: measured on all rows, or known to be above the bound."""

    known: dict[Prompt, PromptScore]
    bound: float

    def __contains__(self, prompt: object) -> bool:
        found = self.known.get(prompt)  # pyright: ignore[reportArgumentType]
        return found is not None and (found.whole or found.loss > self.bound)


def descend(field: SearchSpace, plan: SearchPlan, state: State, after: Callable[[State], None]) -> State:
    """Search until the steps are used up or every start is out of patience; call `after` after every step."""
    while not state.done and state.step < plan.steps:
        _step(field, plan, state)
        stalled = state.misses >= plan.patience or all(p in state.spent for p, _ in state.beam)
        if stalled and len(state.left) <= plan.restarts:
            _restart(field, plan, state)
        elif stalled:
            state.done = True
        after(state)
    return state


def swaps_at(plan: SearchPlan, step: int) -> int:
    """Return how many slots are changed at once: from `swaps` down to one over the first half of the steps."""
    half = max(1, plan.steps // 2)
    return max(1, math.ceil(plan.swaps * (1 - step / half))) if step < half else 1


def penalties(field: SearchSpace, plan: SearchPlan, prompts: list[Prompt]) -> list[float]:
    """Return what the fluency term adds to each prompt's loss; infinite if a prompt cannot be written as words."""
    if not plan.fluency:
        return [0.0] * len(prompts)
    texts = field.writer.texts(prompts)
    costs = iter(fluency(field.lm, [text for text in texts if text is not None]))
    return [math.inf if text is None else plan.fluency * next(costs) for text in texts]


def _step(field: SearchSpace, plan: SearchPlan, state: State) -> None:
    """Expand the best prompt that has candidates left."""
    now, loss = next((p, value) for p, value in state.beam if p not in state.spent)
    _, grad_PD = slot_gradient(
        field.lm, field.gradient_blocks(state.step), embeddings_of(field.lm, now), field.objective
    )
    change_PA = first_order(field.lm, grad_PD, now, field.allowed_A)
    bound = loss if plan.beam == 1 else (state.beam[-1][1] if len(state.beam) == plan.beam else math.inf)
    given = propose(
        change_PA,
        now,
        field.allowed_A,
        plan.candidates,
        seen=Seen(state.known, bound),
        readable=field.readable,
        swaps=swaps_at(plan, state.step),
        rng=random.Random(f"{field.job.seed} swaps {state.step}"),
    )
    state.step += 1
    if not given:
        state.spent.add(now)
        return
    before = field.pool.read
    result = _measured(field, plan, now, given, bound)
    state.read += field.pool.read - before
    state.known.update({c.prompt: m for c, m in zip(given, result, strict=True)})
    first = min(range(len(given)), key=lambda i: (not result[i].whole, result[i].loss))
    accepted = result[first].whole and result[first].loss < loss
    state.misses = 0 if accepted else state.misses + 1
    whole = [(c.prompt, m.loss) for c, m in zip(given, result, strict=True) if m.whole]
    state.beam = [(given[first].prompt, result[first].loss)] if accepted and plan.beam == 1 else state.beam
    if plan.beam > 1:
        state.beam = sorted([*state.beam, *whole], key=lambda pair: pair[1])[: plan.beam]
    state.left[-1] = state.left[-1] or accepted
    if accepted and result[first].loss < state.best[1]:
        state.best = (given[first].prompt, result[first].loss)
        state.passed.append(state.best)
    state.trace.append(_told(field, state, (now, loss), given[first], result[first], accepted, result))


def _measured(
    field: SearchSpace, plan: SearchPlan, now: Prompt, given: list[SwappedPrompt], bound: float
) -> list[PromptScore]:
    prompts = [c.prompt for c in given]
    costs = penalties(field, plan, prompts)
    field.pool.set_base(now)
    if plan.verify == "halving":
        return field.pool.halved(prompts, costs, bound)
    if plan.verify == "all":
        return field.pool.race(prompts, costs, math.inf, shrink=False)
    return field.pool.race(prompts, costs, bound, shrink=plan.beam == 1)


def _restart(field: SearchSpace, plan: SearchPlan, state: State) -> None:
    """Begin again at the best prompt with half of its slots drawn anew."""
    rng = random.Random(f"{field.job.seed} restart {len(state.left)}")
    start = random_prompt(field, rng, state.best[0], -(-field.slotted.length // 2))
    [cost] = penalties(field, plan, [start])
    [loss] = field.pool.losses([start])
    state.beam, state.spent, state.misses = [(start, loss + cost)], set(), 0
    state.known[start] = PromptScore(loss + cost, True)
    state.left.append(False)


def _told(
    field: SearchSpace, state: State, now: tuple[Prompt, float], tried: SwappedPrompt, found: PromptScore,
    accepted: bool, all_found: list[PromptScore],
) -> dict[str, Any]:  # fmt: skip
    """Return the record of one step. `true` is a lower bound if the prompt was not read on all rows."""
    return {
        "step": state.step,
        "search": len(state.left),
        "prompt": list(now[0]),
        "loss": now[1],
        "slot": list(tried.slots),
        "old": field.words(tuple(now[0][s] for s in tried.slots)),
        "new": field.words(tuple(tried.prompt[s] for s in tried.slots)),
        "tried": list(tried.prompt),
        "predicted": tried.predicted,
        "true": found.loss - now[1] if math.isfinite(found.loss) else None,
        "rank": tried.rank,
        "accepted": accepted,
        "candidates": len(all_found),
        "dropped": sum(not m.whole for m in all_found),
    }
