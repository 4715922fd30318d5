"""Answers to rows: what was written, the answer in it, and the vote of several samples."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from foreword.core.format import Decoding, Format
from foreword.methods.write import ALL, Pairs, write_samples
from foreword.models.base import FrozenLM
from foreword.models.write import Sample
from foreword.tasks.extract import Found, extract
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.tasks.texts import normalised, text_metrics
from foreword.tasks.vote import Ballot


@final
@dataclass(frozen=True)
class Answered:
    """A row's answer, or that there is none, with the texts it was found in.

    `votes` are the weights of the answers, the winner's first. `drawn` of `asked` samples were written to their end;
    the others could not have changed the vote. `pieces` counts what was written.
    """

    answer: Found
    texts: tuple[str, ...]
    votes: Mapping[Hashable, float]
    drawn: int
    asked: int
    pieces: int


def answer_rows(lm: FrozenLM | None, pairs: Pairs) -> list[list[Answered]]:
    """The answer of each artefact to each of its rows, in order.

    Raises: ModelError, ConfigError, DataError as `write_samples` says.
    """
    ballots = [[_ballot(artefact.format) for _ in rows] for artefact, rows in pairs]
    texts: list[list[dict[int, Sample]]] = [[{} for _ in rows] for _, rows in pairs]
    words = [[choices_of(artefact.format, row) for row in rows] for artefact, rows in pairs]

    def hear(artefact: int, row: int, sample: int, written: Sample) -> int:
        decoding, ballot = _decoding(pairs[artefact][0].format), ballots[artefact][row]
        found = extract(decoding.extract, written.text, words[artefact][row])
        weight = math.exp(written.mean_logprob) if decoding.vote == "likelihood" else 1.0
        ballot.add(sample, found, _key(decoding, found), weight)
        texts[artefact][row][sample] = written
        return ballot.needed if decoding.early_stop else ALL

    write_samples(lm, pairs, hear)
    return [
        [_answered(ballot, written) for ballot, written in zip(own, some, strict=True)]
        for own, some in zip(ballots, texts, strict=True)
    ]


def choices_of(form: Format, row: Row) -> list[tuple[str, ...]]:
    """The words of each choice: the row's own options, or each label's words with its name last."""
    if row.options:
        return [(option,) for option in row.options]
    return [tuple(dict.fromkeys((*words, label))) for label, words in zip(form.labels, form.words, strict=True)]


def text_values(task: Task, answers: Sequence[Answered], rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The metrics of a task's answers in text, a value a row, the task's own first."""
    assert task.metric is not None, "the answers of the task are texts"
    return text_metrics(task.metric, [a.answer for a in answers], [row.targets for row in rows])


def _ballot(form: Format) -> Ballot:
    decoding = _decoding(form)
    return Ballot(decoding.num_return_sequences, decoding.vote)


def _decoding(form: Format) -> Decoding:
    return form.decoding or Decoding()  # without one write_samples refuses before anything is heard


def _key(decoding: Decoding, found: Found) -> Hashable:
    """What makes two answers one: numbers and choices are canonical, of texts what is left of them normalised."""
    if not isinstance(found, str) or decoding.extract in ("number", "choice"):
        return found
    return normalised(found) or found


def _answered(ballot: Ballot, written: Mapping[int, Sample]) -> Answered:
    return Answered(
        answer=ballot.winner,
        texts=tuple(written[sample].text for sample in sorted(written)),
        votes=ballot.votes,
        drawn=len(written),
        asked=ballot.asked,
        pieces=sum(sample.pieces for sample in written.values()),
    )
