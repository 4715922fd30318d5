"""PEZ: a soft prompt learnt through its nearest tokens, which are what is kept (Wen et al. 2023)."""

from dataclasses import dataclass
from typing import Any

from foreword.core.prompts import HardPrompt
from foreword.methods.triggers.autoprompt import SearchConfig
from foreword.methods.triggers.explanation import explained
from foreword.methods.triggers.final_choice import as_value, choose
from foreword.methods.triggers.gradients import embeddings_of
from foreword.methods.triggers.initial_prompts import Init, starts
from foreword.methods.triggers.projection import Descent
from foreword.methods.triggers.search_space import Field, make_field
from foreword.methods.triggers.slots import Prompt
from foreword.models.base import FrozenLM
from foreword.training.contract import Ended, Job, Notebook, StepwiseMethod
from foreword.training.options import Count, Positive

FINALISTS = 8


@dataclass(frozen=True)
class PezConfig(SearchConfig):
    """AdamW without decay moves the soft copy by `learning_rate`, as published for CLIP; the tokens that it passes are
    measured on the pool every `eval_every` steps. `init` is where it starts."""

    steps: Count = 300
    learning_rate: Positive = 0.1
    eval_every: Count = 10
    init: Init = "filler"


class Pez(StepwiseMethod):
    name = "pez"
    summary = "words nearest to a soft prompt that is learnt through them"
    source = "Wen et al. 2023"
    Config = PezConfig
    form = "hard"
    learns = False  # few words hold no rule over many nouns
    mixed_batch = True
    freezes_lm = True

    def search(self, lm: FrozenLM, job: Job, notebook: Notebook) -> Ended:
        lm.require_gradient()
        config: PezConfig = job.config
        field = make_field(lm, job, config)
        begun = starts(field, config.init)
        begin = min(begun, key=lambda name: begun[name][1])
        descent = Descent(embeddings_of(lm, begun[begin][0]), config.learning_rate)
        passed: list[tuple[Prompt, float]] = [begun[begin]]
        steps: list[dict[str, Any]] = []
        kept = notebook.kept()
        if kept is not None:
            descent.restore(kept["descent"])
            passed, steps = [(tuple(p), loss) for p, loss in kept["passed"]], kept["steps"]
            field.pool.read = kept["read"]
        while descent.step < config.steps:
            prompt, loss = descent.advance(lm, field.gradient_blocks(descent.step), field.allowed_A, config.objective)
            if descent.step % config.eval_every == 0 or descent.step == config.steps:
                measured = _measured(field, prompt, passed)
                steps.append(
                    {"step": descent.step, "tokens": field.words(prompt), "prompt": list(prompt), "loss": measured}
                )
                state = {"step": descent.step, "descent": descent.state(), "passed": passed, "steps": steps}
                notebook.keep({**state, "read": field.pool.read})
            notebook.tell(descent.step, config.steps, loss, field.pool.read)
        return _found(field, passed, steps, begin)


def _measured(field: Field, prompt: Prompt, passed: list[tuple[Prompt, float]]) -> float | None:
    """The pool's loss, remembered where the prompt can be used and was not passed before."""
    if any(prompt == p for p, _ in passed) or not field.readable([prompt])[0]:
        return None
    [loss] = field.pool.losses([prompt])
    passed.append((prompt, loss))
    return loss


def _found(field: Field, passed: list[tuple[Prompt, float]], steps: list[dict[str, Any]], begin: str) -> Ended:
    best = sorted(passed, key=lambda pair: pair[1])[:FINALISTS]
    choices, chosen = choose(field, [p for p, _ in best])
    prompt = best[0][0] if chosen.prompt is None else chosen.prompt
    metrics = {
        "pool_loss": round(best[0][1], 6),
        "rows_read": field.pool.read,
        "kept": "manual" if chosen.prompt is None else "found",
        "manual_validation_accuracy": round(choices[0].accuracy, 6),
    }
    trace = {"projections": steps, "begin": begin, "prompt": explained(field, prompt)}
    if chosen.prompt is None:
        return Ended(HardPrompt.empty(), field.job.format, 0, metrics, trace)
    value, form = as_value(field, chosen.prompt)
    return Ended(value, form, field.slotted.length, metrics, trace)
