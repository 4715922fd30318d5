"""Search label words and the prompt in turn, each with the other as it stands (Shin et al. 2020, section 2.3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, final

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.inference.batched import stacked_scores
from foreword.methods.triggers.final_choice import measure
from foreword.methods.triggers.label_words import find_words, with_words
from foreword.models.base import FrozenLM
from foreword.training.contract import Job, Made, SearchState

Search = Callable[[FrozenLM, Job, SearchState], Made]
ROUND = "round"  # the name under which the number of the round, its format and the words so far are kept


@final
class RoundState(SearchState):
    """Keep the results of one round in the state of the whole search, under names of their own."""

    def __init__(self, whole: SearchState, number: int, steps: int):
        self._whole, self._own, self._first, self._steps = whole, f"{ROUND} {number} ", number * steps, steps

    def get(self, name: str) -> Any:
        return self._whole.get(self._own + name)

    def put(self, results: Mapping[str, Any]) -> None:
        self._whole.put({self._own + name: result for name, result in results.items()})

    def names(self, prefix: str) -> Sequence[str]:
        return [name.removeprefix(self._own) for name in self._whole.names(self._own + prefix)]

    def begin(self, step: int = 0) -> None:
        self._whole.begin(self._first + step)

    def report(self, step: int, steps: int, loss: float, rows: int) -> None:
        self._whole.report(self._first + step, steps, loss, rows)


def alternate(lm: FrozenLM, job: Job, state: SearchState, search: Search, rounds: int) -> Made:
    """Find label words, then run `rounds` of a search and find words again.

    On the validation rows, the result is never below the manual prompt with the words given.
    """
    stored = state.get(ROUND)
    if stored is None:
        choice = find_words(lm, job.task, job.format, seed=job.seed)[0]
        first, words, form = 0, [asdict(choice)], with_words(job.format, choice)
    else:
        first, words, form = stored["number"], [*stored["words"]], Format.from_json(stored["format"])
    best: Made | None = None
    for number in range(first, rounds):
        state.put({ROUND: {"number": number, "format": form.to_json(), "words": [*words]}})
        best = search(lm, replace(job, format=form), RoundState(state, number, job.config.steps // rounds))
        choice = find_words(lm, job.task, best.format, best.value, job.seed)[0]
        words.append(asdict(choice))
        form = with_words(best.format, choice)
        best = replace(best, format=form)
        if form.template.slots:  # ids that cannot be written are no words to go on from
            break
    assert best is not None, "there is one round at least"
    rows = job.task.validation or job.task.train
    empty = HardPrompt.empty()
    pairs = [(empty, job.format), (best.value, best.format)]
    scores = stacked_scores(lm, [v for v, _ in pairs], [job.encoded_rows.of(lm, f, rows) for _, f in pairs])
    manual, ours = (measure(None, score_NC, rows) for score_NC in scores)
    metrics = {**best.metrics, "manual_validation_accuracy": round(manual.accuracy, 6)}
    trace = {**best.trace, "words": words}
    if manual.rank >= ours.rank:
        return Made(empty, job.format, 0, {**metrics, "kept": "manual"}, trace)
    tokens = best.parameters + sum(map(len, best.format.words))
    return replace(best, parameters=tokens, metrics={**metrics, "kept": "found"}, trace=trace)
