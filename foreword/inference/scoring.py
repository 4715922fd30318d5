"""Score the rows of any artefact, whatever its form; prompts of different artefacts share batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.shapes import Float, Tensor
from foreword.core.template import Template
from foreword.core.values import Learnt, Neighbours, Probe, PromptPool, WordCounts
from foreword.core.values.classifiers import row_words
from foreword.errors import ConfigError, ModelError
from foreword.inference.batched import stacked_scores
from foreword.inference.features import EncodedRows, encode_rows, row_features
from foreword.inference.prompt_pool import pool_scores
from foreword.inference.reasoning import reasoned_scores
from foreword.inference.retrieval import encode_near
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.tasks.rows import Row


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Request the scores of rows under a learnt value; `fields` are the task's, which word counts need.

    `encoded_rows` has the rows of a run that are encoded already.
    """

    value: Learnt
    format: Format
    rows: Sequence[Row]
    fields: tuple[str, ...] = ()
    encoded_rows: EncodedRows | None = None

    def encode(self, lm: FrozenLM) -> list[Encoded]:
        """Encode the rows in the form in which the model reads them."""
        alone = self.value.parts(self.format)[0][0] is self.value and not self.value.rewrites_rows
        if self.encoded_rows is None or not alone:
            return encode_value(lm, self.value, self.format, self.rows)
        return self.encoded_rows.of(lm, self.format, self.rows, self.value.text_start)


def score_rows(
    lm: FrozenLM | None,
    pairs: Sequence[tuple[Artefact, Sequence[Row]]],
    tokens_per_batch: int | None = None,
    encoded_rows: EncodedRows | None = None,
) -> list[Float[Tensor, "N C"]]:
    """Return each artefact's scores of its rows, in order: log-scores whose softmax over labels is the probability.

    Raises: ConfigError for an artefact that answers in text; ModelError if an artefact needs a model and there is none;
    ArtefactError if an artefact does not fit the model (`check` tells why before any work).
    """
    for artefact, _ in pairs:
        if artefact.format.answers == "text":
            raise ConfigError(
                "The artefact answers in text, so it has no scores of labels; use what writes (`answer_rows`)."
            )
        if lm is None and artefact.value.needs_model:
            raise ModelError(
                f"An artefact of {artefact.method} needs its model {artefact.model.get('name')!r}; none was loaded."
            )
    reasoning = [pair for pair in pairs if pair[0].format.decoding is not None]
    rest = [pair for pair in pairs if pair[0].format.decoding is None]
    reasoned = iter(reasoned_scores(lm, reasoning) if lm is not None else [])
    readings = [ScoreRequest(a.value, a.format, rows, a.fields, encoded_rows) for a, rows in rest]
    read = iter(score_readings(lm, readings, tokens_per_batch))
    return [next(read if artefact.format.decoding is None else reasoned) for artefact, _ in pairs]


def score_readings(
    lm: FrozenLM | None, readings: Sequence[ScoreRequest], tokens_per_batch: int | None = None
) -> list[Float[Tensor, "N C"]]:
    """Return the scores of each request's rows, in order.

    All prompts share batches: those of different requests, the members of an ensemble, and the premises that calibrate
    rows with their own options.
    """
    flat: list[ScoreRequest] = []
    spans: list[list[range]] = []
    for reading in readings:
        own = []
        for part in _members(reading):
            wanted = [part] if _premise(part) is None else [_uncalibrated(part), _premise(part) or part]
            own.append(range(len(flat), len(flat) + len(wanted)))
            flat += wanted
        spans.append(own)
    scores = _score_flat(lm, flat, tokens_per_batch)
    results = []
    for reading, own in zip(readings, spans, strict=True):
        parts = list(_members(reading))
        read = [
            scores[span[0]] if len(span) == 1 else _less(scores[span[0]], scores[span[1]]) / part.format.temperature
            for part, span in zip(parts, own, strict=True)
        ]
        results.append(reading.value.combined(read))
    return results


def _less(score_NC: Tensor, other_NC: Tensor) -> Tensor:
    """Return the difference; labels that a row lacks stay at -inf."""
    return torch.where(score_NC.isneginf(), score_NC, score_NC - other_NC)


def _members(reading: ScoreRequest) -> list[ScoreRequest]:
    return [replace(reading, value=value, format=form) for value, form in reading.value.parts(reading.format)]


def _uncalibrated(reading: ScoreRequest) -> ScoreRequest:
    return replace(reading, format=replace(reading.format, temperature=1.0, premise=None))


def _premise(reading: ScoreRequest) -> ScoreRequest | None:
    """Return the request of the rows' own options after the premise alone (Holtzman et al. 2021), if there is one."""
    form = reading.format
    if form.premise is None:
        return None
    put = replace(form, template=Template.parse(form.premise), temperature=1.0, premise=None)
    return replace(reading, value=HardPrompt.empty(), format=put)


def _score_flat(lm: FrozenLM | None, readings: Sequence[ScoreRequest], tokens_per_batch: int | None) -> list[Tensor]:
    """Return the scores of each request; prompts share batches, and values that change weights are read alone."""
    scores = [own_scores(reading.value, lm, reading, tokens_per_batch) for reading in readings]
    rest = [i for i, score in enumerate(scores) if score is None]
    alone = [[i] for i in rest if readings[i].value.changes_weights]
    for group in [[i for i in rest if not readings[i].value.changes_weights], *alone]:
        if not group:
            continue
        assert lm is not None, "only word counts are read without a model"
        chosen = [readings[i] for i in group]
        encoded = [reading.encode(lm) for reading in chosen]
        read = stacked_scores(lm, [reading.value for reading in chosen], encoded, tokens_per_batch)
        for index, score in zip(group, read, strict=True):
            scores[index] = score
    return [score for score in scores if score is not None]


@singledispatch
def own_scores(
    value: Learnt, lm: FrozenLM | None, reading: ScoreRequest, tokens_per_batch: int | None
) -> Tensor | None:
    """Return the scores of a kind of value that is read neither as a prompt nor as weights; None for the other kinds.

    A new kind of that sort registers its function here: `@own_scores.register`.
    """
    return None


@own_scores.register
def _(value: WordCounts, lm: FrozenLM | None, reading: ScoreRequest, tokens_per_batch: int | None) -> Tensor:
    return value.scores([row_words(reading.fields, row.fields) for row in reading.rows])


@own_scores.register
def _(value: Probe, lm: FrozenLM, reading: ScoreRequest, tokens_per_batch: int | None) -> Tensor:
    features_ND = row_features(lm, reading.format, reading.rows, value.pool, reading.encoded_rows)
    return features_ND @ value.weight_CD.T + value.bias_C


@own_scores.register
def _(value: PromptPool, lm: FrozenLM, reading: ScoreRequest, tokens_per_batch: int | None) -> Tensor:
    return pool_scores(lm, value, reading.encode(lm), tokens_per_batch or lm.batch_tokens)


def encode_value(lm: FrozenLM, value: Learnt, form: Format, rows: Sequence[Row]) -> list[Encoded]:
    """Encode rows in the form in which the model reads them; rows of an ensemble are encoded once for each member."""
    return [row for part, part_form in value.parts(form) for row in _encode(part, lm, part_form, rows)]


@singledispatch
def _encode(value: Learnt, lm: FrozenLM, form: Format, rows: Sequence[Row]) -> list[Encoded]:
    return encode_rows(lm, form, rows, value.text_start)


@_encode.register
def _(value: Neighbours, lm: FrozenLM, form: Format, rows: Sequence[Row]) -> list[Encoded]:
    return encode_near(lm, value, form, rows)[0]
