"""Label words and the prompt in turn: each is searched with the other as it stands (Shin et al. 2020, section 2.3)."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, final

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.inference.batched import stacked_scores
from foreword.inference.scoring import encode_rows
from foreword.methods.triggers.final_choice import measure
from foreword.methods.triggers.label_words import find_words, with_words
from foreword.models.base import FrozenLM
from foreword.training.contract import Ended, Job, Notebook

Search = Callable[[FrozenLM, Job, Notebook], Ended]


@final
class RoundNotebook(Notebook):
    """One round's share of a notebook: its own state, beside the round's number and format."""

    def __init__(self, whole: Notebook, number: int, form: Format, steps: int):
        self._whole, self._number, self._form, self._steps = whole, number, form, steps

    def kept(self) -> dict[str, Any] | None:
        kept = self._whole.kept()
        return kept["part"] if kept is not None and kept["round"] == self._number else None

    def keep(self, state: Mapping[str, Any]) -> None:
        done = self._number * self._steps + int(state.get("step", 0))
        self._whole.keep({"step": done, "round": self._number, "format": self._form.to_json(), "part": dict(state)})

    def tell(self, step: int, steps: int, loss: float, rows: int) -> None:
        self._whole.tell(self._number * self._steps + step, steps, loss, rows)


def alternate(lm: FrozenLM, job: Job, notebook: Notebook, search: Search, rounds: int) -> Ended:
    """Words, then `rounds` of a search and words again. What is kept is never below the manual prompt with the words
    given, on development rows."""
    kept = notebook.kept()
    first = 0 if kept is None else kept["round"]
    trace: dict[str, Any] = {"words": []}
    if kept is None:
        choice = find_words(lm, job.task, job.format, seed=job.seed)[0]
        trace["words"].append(asdict(choice))
        form = with_words(job.format, choice)
    else:
        form = Format.from_json(kept["format"])
    found: Ended | None = None
    for number in range(first, rounds):
        found = search(lm, replace(job, format=form), RoundNotebook(notebook, number, form, job.config.steps // rounds))
        choice = find_words(lm, job.task, found.format, found.value, job.seed)[0]
        trace["words"].append(asdict(choice))
        found = replace(found, format=with_words(found.format, choice))
        form = found.format
        if form.template.slots:  # ids that cannot be written are no words to go on from
            break
    assert found is not None, "there is one round at least"
    rows = job.task.validation or job.task.train
    empty = HardPrompt.empty()
    pairs = [(empty, job.format), (found.value, found.format)]
    scores = stacked_scores(lm, [v for v, _ in pairs], [encode_rows(lm, f, rows) for _, f in pairs])
    manual, ours = (measure(None, score_NC, rows) for score_NC in scores)
    metrics = {**found.metrics, "manual_validation_accuracy": round(manual.accuracy, 6)}
    if manual.rank >= ours.rank:
        return Ended(empty, job.format, 0, {**metrics, "kept": "manual"}, {**found.trace, **trace})
    words = sum(map(len, found.format.words))
    return replace(
        found, numbers=found.numbers + words, metrics={**metrics, "kept": "found"}, trace={**found.trace, **trace}
    )
