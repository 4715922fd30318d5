"""Answer rows in text: generate samples, extract the answer of each, and let the samples vote."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from foreword.core.format import Decoding, Format
from foreword.inference.generation import ALL, Pairs, write_samples
from foreword.models.base import FrozenLM
from foreword.models.generate import GeneratedText
from foreword.tasks.answer_metrics import comparable
from foreword.tasks.corpus_metrics import Summed, mean_of
from foreword.tasks.extract import Found, extract
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.tasks.text_metric import Judge
from foreword.tasks.vote import Ballot, majority_at


@final
@dataclass(frozen=True)
class Answered:
    """Hold a row's answer, or that there is none, with the texts it was extracted from.

    `votes` are the weights of the answers, the winner's first. `drawn` of `asked` samples were generated to their end;
    the others could not have changed the vote. `pieces` counts the generated tokens. `cut` of the texts reached the
    limit of tokens without an end; `whole` says that a text is the answer, instead of containing it.
    """

    answer: Found
    texts: tuple[str, ...]
    votes: Mapping[Hashable, float]
    drawn: int
    asked: int
    pieces: int
    cut: int = 0
    whole: bool = False


def answer_rows(lm: FrozenLM | None, pairs: Pairs) -> list[list[Answered]]:
    """Return the answer of each artefact to each of its rows, in order.

    Raises: ModelError, ConfigError, DataError as `write_samples` says.
    """
    ballots = [[_ballot(artefact.format) for _ in rows] for artefact, rows in pairs]
    texts: list[list[dict[int, GeneratedText]]] = [[{} for _ in rows] for _, rows in pairs]
    words = [[choices_of(artefact.format, row) for row in rows] for artefact, rows in pairs]

    def hear(artefact: int, row: int, sample: int, written: GeneratedText) -> int:
        decoding, ballot = _decoding(pairs[artefact][0].format), ballots[artefact][row]
        result = extract(decoding.extract, written.text, words[artefact][row], written.ended)
        # Beams have no likelihood, and one text of a row needs no weight.
        weighed = decoding.vote == "likelihood" and decoding.num_return_sequences > 1
        weight = min(1.0, math.exp(written.mean_logprob)) if weighed else 1.0
        ballot.add(sample, result, _key(decoding, result), weight)
        texts[artefact][row][sample] = written
        return ballot.needed if decoding.early_stop else ALL

    write_samples(lm, pairs, hear)
    return [
        [_answered(ballot, written, _decoding(artefact.format)) for ballot, written in zip(own, some, strict=True)]
        for own, some, (artefact, _) in zip(ballots, texts, pairs, strict=True)
    ]


def choices_of(form: Format, row: Row) -> list[tuple[str, ...]]:
    """Return the words of each choice: the row's own options, or each label's words followed by its name."""
    if row.options:
        return [(option,) for option in row.options]
    return [tuple(dict.fromkeys((*words, label))) for label, words in zip(form.labels, form.words, strict=True)]


def judged(judge: Judge, answered: Sequence[Answered]) -> list[Found]:
    """Return the answers as they are judged. The last number of a text that was cut is not its answer."""
    if judge.metric != "number":
        return [one.answer for one in answered]
    return [
        extract("number", one.answer, (), ended=False) if one.whole and one.cut and isinstance(one.answer, str)
        else one.answer
        for one in answered
    ]  # fmt: skip


def text_values(task: Task, answers: Sequence[Answered], rows: Sequence[Row]) -> np.ndarray:
    """Return the task's own metric for each row alone, from answers in text."""
    return task.judge.values(judged(task.judge, answers), rows)


def text_metrics(task: Task, answers: Sequence[Answered], rows: Sequence[Row]) -> dict[str, float]:
    """Return the metrics of answers in text, the task's own first, and last the share of texts that were cut."""
    found = task.judge.metrics(judged(task.judge, answers), rows)
    return {**found, "cut": cut_of([one.cut / one.drawn for one in answers]).value()} if found else found


def cut_of(shares: Sequence[float]) -> Summed:
    """Return the share of texts that were cut as a metric, from the share of each row."""
    return mean_of(np.array(shares, dtype=np.float64))


def majority_curve(form: Format, task: Task, answered: Sequence[Answered], rows: Sequence[Row]) -> dict[int, float]:
    """Return the mean over rows of an unbiased estimate of the metric of a majority of k samples, by k.

    The largest k is the number of samples drawn. The result is empty if there is one sample for each row, if an early
    stop saved samples, or if votes are weighted.
    """
    asked = answered[0].asked if answered else 1
    if asked == 1 or _decoding(form).vote != "majority" or any(one.drawn < asked for one in answered):
        return {}
    results = {}
    for k in sorted({k for k in (1, 3, 5, 9, 17, 33, 65, 129) if k < asked} | {asked}):
        values = [
            majority_at(k, {key: round(vote) for key, vote in one.votes.items()}, _right(form, task, one, row), asked)
            for one, row in zip(answered, rows, strict=True)
        ]
        results[k] = sum(values) / len(values)
    return results


def _right(form: Format, task: Task, one: Answered, row: Row) -> list[Hashable]:
    """Return those of a row's answers that are right."""
    if task.metric is not None:
        return [key for key in one.votes if task.judge.right(str(key), row.targets)]
    return [] if row.label is None else [choices_of(form, row)[row.label][0]]


def _ballot(form: Format) -> Ballot:
    decoding = _decoding(form)
    return Ballot(decoding.num_return_sequences, decoding.vote)


def _decoding(form: Format) -> Decoding:
    return form.decoding or Decoding()  # without one write_samples refuses before anything is heard


def _key(decoding: Decoding, found: Found) -> Hashable:
    """Return what equal answers share: numbers and choices are canonical, texts are compared as in exact_match."""
    if not isinstance(found, str) or decoding.extract in ("number", "choice"):
        return found
    return comparable(found)


def _answered(ballot: Ballot, written: Mapping[int, GeneratedText], decoding: Decoding) -> Answered:
    return Answered(
        answer=ballot.winner,
        texts=tuple(written[sample].text for sample in sorted(written)),
        votes=ballot.votes,
        drawn=len(written),
        asked=ballot.asked,
        pieces=sum(sample.pieces for sample in written.values()),
        cut=sum(not sample.ended for sample in written.values()),
        whole=decoding.extract is None,
    )
