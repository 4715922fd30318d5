"""Learn a soft prompt through its nearest tokens, and keep those tokens (PEZ, Wen et al. 2023)."""

from dataclasses import dataclass
from typing import Annotated, Any

from foreword.core.doc import Doc, documented
from foreword.core.prompts import HardPrompt
from foreword.methods.triggers.autoprompt import SEARCH, SearchConfig
from foreword.methods.triggers.explanation import explained
from foreword.methods.triggers.final_choice import as_value, choose, manual_metrics
from foreword.methods.triggers.gradients import embeddings_of
from foreword.methods.triggers.initial_prompts import Init, starts
from foreword.methods.triggers.projection import Descent
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.search_space import SearchSpace, make_field
from foreword.models.base import FrozenLM
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count, Positive

FINALISTS = 8


@documented
@dataclass(frozen=True)
class PezConfig(SearchConfig):
    """Hold the options of PEZ. AdamW without decay moves the soft prompt."""

    steps: Annotated[Count, Doc("Number of steps of the soft prompt.")] = 300
    learning_rate: Annotated[Positive, Doc("Learning rate of AdamW (0.1, as published for CLIP).")] = 0.1
    eval_every: Annotated[Count, Doc("Steps between two measurements of the nearest tokens on the pool.")] = 10
    init: Annotated[Init, Doc("Initial prompt.")] = "filler"


class Pez(DirectMethod):
    name = "pez"
    summary = "words nearest to a soft prompt that is learnt through them"
    source = "Wen et al. 2023"
    Config = PezConfig
    form = "hard"
    resumes = True
    learns = False  # few words hold no rule over many nouns
    mixed_batch = True
    freezes_lm = True

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        lm.require_gradient()
        config: PezConfig = job.config
        field = make_field(lm, job, config)
        begun = starts(field, config.init)
        begin = min(begun, key=lambda name: begun[name][1])
        descent = Descent(embeddings_of(lm, begun[begin][0]), config.learning_rate)
        passed: list[tuple[Prompt, float]] = [begun[begin]]
        steps: list[dict[str, Any]] = []
        stored = state.get(SEARCH)
        if stored is not None:
            descent.restore(stored["descent"])
            passed, steps = [(tuple(p), loss) for p, loss in stored["passed"]], stored["steps"]
            field.pool.read = stored["read"]
        state.begin(descent.step)
        while descent.step < config.steps:
            prompt, loss = descent.advance(lm, field.gradient_blocks(descent.step), field.allowed_A, config.objective)
            if descent.step % config.eval_every == 0 or descent.step == config.steps:
                measured = _measured(field, prompt, passed)
                steps.append(
                    {"step": descent.step, "tokens": field.words(prompt), "prompt": list(prompt), "loss": measured}
                )
                now = {"descent": descent.state(), "passed": passed, "steps": steps, "read": field.pool.read}
                state.put({SEARCH: now})
            state.report(descent.step, config.steps, loss, field.pool.read)
        return _best_passed(field, passed, steps, begin)


def _measured(field: SearchSpace, prompt: Prompt, passed: list[tuple[Prompt, float]]) -> float | None:
    """Return the pool's loss and remember it; None if the prompt cannot be used or was passed before."""
    if any(prompt == p for p, _ in passed) or not field.readable([prompt])[0]:
        return None
    [loss] = field.pool.losses([prompt])
    passed.append((prompt, loss))
    return loss


def _best_passed(
    field: SearchSpace, passed: list[tuple[Prompt, float]], steps: list[dict[str, Any]], begin: str
) -> Made:
    """Return the prompt that does best on the validation rows, or the manual one if none beats it."""
    best = sorted(passed, key=lambda pair: pair[1])[:FINALISTS]
    choices, chosen = choose(field, [p for p, _ in best])
    prompt = best[0][0] if chosen.prompt is None else chosen.prompt
    metrics = {
        "pool_loss": round(best[0][1], 6),
        "rows_read": field.pool.read,
        "kept": "manual" if chosen.prompt is None else "found",
        **manual_metrics(choices),
    }
    trace = {"projections": steps, "begin": begin, "prompt": explained(field, prompt)}
    if chosen.prompt is None:
        return Made(HardPrompt.empty(), field.job.format, 0, metrics, trace)
    value, form = as_value(field, chosen.prompt)
    return Made(value, form, field.slotted.length, metrics, trace)
