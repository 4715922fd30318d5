"""Scores of any artefact's rows, whatever its form; prompts of different artefacts share batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.shapes import Float, Tensor
from foreword.core.template import Template
from foreword.core.values import Ensemble, Learnt, Neighbours, Probe, PromptPool, Rule, WordCounts, text_start
from foreword.errors import ConfigError, ModelError
from foreword.inference.batched import stacked_scores
from foreword.inference.features import EncodedRows, encode_rows, row_features
from foreword.inference.prompt_pool import pool_scores
from foreword.inference.reasoning import reasoned_scores
from foreword.inference.retrieval import encode_near
from foreword.inference.word_counts import count_scores
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.tasks.rows import Row


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Name rows to be read through something learnt; `fields` are the task's, which word counts need.

    `encoded_rows` has the rows of a run that are encoded already.
    """

    value: Learnt
    format: Format
    rows: Sequence[Row]
    fields: tuple[str, ...] = ()
    encoded_rows: EncodedRows | None = None

    def encode(self, lm: FrozenLM) -> list[Encoded]:
        """Return the rows as they are put to the model."""
        if self.encoded_rows is None or isinstance(self.value, Ensemble | Neighbours):
            return encode_value(lm, self.value, self.format, self.rows)
        return self.encoded_rows.of(lm, self.format, self.rows, text_start(self.value))


def score_rows(
    lm: FrozenLM | None,
    pairs: Sequence[tuple[Artefact, Sequence[Row]]],
    tokens_per_batch: int | None = None,
    encoded_rows: EncodedRows | None = None,
) -> list[Float[Tensor, "N C"]]:
    """Return each artefact's scores of its own rows, in order: log-scores whose softmax over labels is the probability.

    Raises: ArtefactError where an artefact does not fit the model (`check` tells why before any work).
    """
    for artefact, _ in pairs:
        if artefact.format.answers == "text":
            raise ConfigError(
                "The artefact answers in text, so it has no scores of labels; use what writes (`answer_rows`)."
            )
        if lm is None and not isinstance(artefact.value, WordCounts):
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
    """The scores of each reading's rows. All prompts share batches: those of different readings, the members of an
    ensemble, and what the scores of rows with their own options are calibrated by.
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
    found = []
    for reading, own in zip(readings, spans, strict=True):
        parts = list(_members(reading))
        read = [
            scores[span[0]] if len(span) == 1 else _less(scores[span[0]], scores[span[1]]) / part.format.temperature
            for part, span in zip(parts, own, strict=True)
        ]
        found.append(combined(read, reading.value.rule) if isinstance(reading.value, Ensemble) else read[0])
    return found


def combined(scores: Sequence[Float[Tensor, "N C"]], rule: Rule) -> Float[Tensor, "N C"]:
    """Log of the members' mean probability; or, for the majority, log of the votes, where means decide between ties."""
    logprob_MNC = torch.stack([score.double().log_softmax(-1) for score in scores])
    mean_NC = logprob_MNC.logsumexp(0) - math.log(len(scores))
    if rule == "mean":
        return mean_NC
    vote_NC = torch.nn.functional.one_hot(logprob_MNC.argmax(-1), logprob_MNC.shape[-1]).sum(0)
    total_NC = ((vote_NC + mean_NC.exp()) / (len(scores) + 1)).log()
    return total_NC.masked_fill(mean_NC.isneginf(), -torch.inf)


def _less(score_NC: Tensor, other_NC: Tensor) -> Tensor:
    """The difference; labels that a row lacks stay at -inf."""
    return torch.where(score_NC.isneginf(), score_NC, score_NC - other_NC)


def _members(reading: ScoreRequest) -> list[ScoreRequest]:
    if not isinstance(reading.value, Ensemble):
        return [reading]
    return [replace(reading, value=m.value, format=m.format) for m in reading.value.members]


def _uncalibrated(reading: ScoreRequest) -> ScoreRequest:
    return replace(reading, format=replace(reading.format, temperature=1.0, premise=None))


def _premise(reading: ScoreRequest) -> ScoreRequest | None:
    """The rows' own options after the premise alone, where that is what calibrates them (Holtzman et al. 2021)."""
    form = reading.format
    if form.premise is None:
        return None
    put = replace(form, template=Template.parse(form.premise), temperature=1.0, premise=None)
    return replace(reading, value=HardPrompt(torch.zeros(0, dtype=torch.long)), format=put)


def _score_flat(lm: FrozenLM | None, readings: Sequence[ScoreRequest], tokens_per_batch: int | None) -> list[Tensor]:
    scores: list[Tensor | None] = [None] * len(readings)
    prompts: list[int] = []
    for index, reading in enumerate(readings):
        value = reading.value
        if isinstance(value, WordCounts):
            scores[index] = count_scores(value, reading.fields, reading.rows)
            continue
        assert lm is not None, "only word counts are read without a model"
        if isinstance(value, Probe):
            scores[index] = probe_scores(lm, value, reading)
        elif isinstance(value, PromptPool):
            scores[index] = pool_scores(lm, value, reading.encode(lm), tokens_per_batch or lm.batch_tokens)
        elif isinstance(value, HardPrompt | SoftPrompt | PrefixPrompt | Neighbours):
            prompts.append(index)
        else:
            scores[index] = stacked_scores(lm, [value], [reading.encode(lm)], tokens_per_batch)[0]
    if prompts and lm is not None:
        encoded = [readings[i].encode(lm) for i in prompts]
        values = [_prompt_of(readings[i].value) for i in prompts]
        for index, score in zip(prompts, stacked_scores(lm, values, encoded, tokens_per_batch), strict=True):
            scores[index] = score
    return [score for score in scores if score is not None]


def _prompt_of(value: Learnt) -> Learnt:
    """What fills the slots of the rows: nothing where the rows bring their examples as words."""
    return HardPrompt(torch.zeros(0, dtype=torch.long)) if isinstance(value, Neighbours) else value


def encode_value(lm: FrozenLM, value: Learnt, form: Format, rows: Sequence[Row]) -> list[Encoded]:
    """Return rows as they are put to the model; those of an ensemble once for each member."""
    if isinstance(value, Ensemble):
        return [e for m in value.members for e in encode_value(lm, m.value, m.format, rows)]
    if isinstance(value, Neighbours):
        return encode_near(lm, value, form, rows)[0]
    return encode_rows(lm, form, rows, text_start(value))


def probe_scores(lm: FrozenLM, probe: Probe, reading: ScoreRequest) -> Float[Tensor, "N C"]:
    """Return the scores of a linear probe over hidden states."""
    features_ND = row_features(lm, reading.format, reading.rows, probe.pool, reading.encoded_rows)
    return features_ND @ probe.weight_CD.T + probe.bias_C
