"""Scores of any artefact's rows, whatever its form; prompts of different artefacts share batches."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.learnt import Probe, WordCounts, text_start
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.shapes import Float, Tensor
from foreword.errors import ModelError
from foreword.methods.stack import batches_of, stacked_scores
from foreword.models.base import FrozenLM
from foreword.models.encode import Encoded, Encoder, collate, prepare
from foreword.tasks.rows import Row


def encode_rows(lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int = 0) -> list[Encoded]:
    """Rows as token ids and slots; `extra` positions are left to a prefix."""
    return Encoder.build(lm, form, extra).encode_rows(rows)


def score_rows(
    lm: FrozenLM | None, pairs: Sequence[tuple[Artefact, Sequence[Row]]], tokens_per_batch: int | None = None
) -> list[Float[Tensor, "N C"]]:
    """Each artefact's scores of its own rows, in order: log-scores whose softmax over labels is the probability.

    Raises: ArtefactError where an artefact does not fit the model (`check` tells why before any work).
    """
    scores: list[Tensor | None] = [None] * len(pairs)
    prompts: list[int] = []
    for index, (artefact, rows) in enumerate(pairs):
        value = artefact.value
        if isinstance(value, WordCounts):
            scores[index] = count_scores(value, artefact.fields, rows)
        elif lm is None:
            raise ModelError(
                f"An artefact of {artefact.method} needs its model {artefact.model.get('name')!r}; none was loaded."
            )
        elif isinstance(value, Probe):
            scores[index] = probe_scores(lm, value, artefact.format, rows)
        elif isinstance(value, HardPrompt | SoftPrompt | PrefixPrompt):
            prompts.append(index)
        else:
            encoded = encode_rows(lm, artefact.format, rows)
            scores[index] = stacked_scores(lm, [value], [encoded], tokens_per_batch)[0]
    if prompts and lm is not None:
        values = [pairs[i][0].value for i in prompts]
        encoded = [encode_rows(lm, pairs[i][0].format, pairs[i][1], text_start(pairs[i][0].value)) for i in prompts]
        for index, score in zip(prompts, stacked_scores(lm, values, encoded, tokens_per_batch), strict=True):
            scores[index] = score
    return [score for score in scores if score is not None]


@torch.no_grad()
def row_features(lm: FrozenLM, form: Format, rows: Sequence[Row], pool: str) -> Float[Tensor, "N D"]:
    """Frozen hidden states of each row: at the "answer" position, there but after the output head's transform ("head"),
    or averaged over its tokens ("mean")."""
    encoded = encode_rows(lm, form, rows)
    out: list[Tensor | None] = [None] * len(encoded)
    for batch in batches_of(encoded, lm.batch_tokens):
        inputs, _ = prepare(lm, collate([encoded[i] for i in batch]), None, torch.zeros(len(batch), dtype=torch.long))
        read = (
            lm.hidden_at(inputs)[:, 0]
            if pool == "head"
            else lm.features(inputs, "mean" if pool == "mean" else "answer")
        )
        features = read.float().cpu()
        for index, feature in zip(batch, features, strict=True):
            out[index] = feature
    return torch.stack([f for f in out if f is not None])


def probe_scores(lm: FrozenLM, probe: Probe, form: Format, rows: Sequence[Row]) -> Float[Tensor, "N C"]:
    return row_features(lm, form, rows, probe.pool) @ probe.weight_CD.T + probe.bias_C


WORD = re.compile(r"\w+|[^\w\s]")


def row_words(fields: Sequence[str], row: Row) -> list[str]:
    """Lower-case words and pairs of neighbours; where a row has several texts each word is marked with its field."""
    words = []
    for name in fields:
        mark = f"{name}:" if len(fields) > 1 else ""
        found = WORD.findall(row.fields[name].lower())
        words += [mark + w for w in found] + [f"{mark}{a} {b}" for a, b in pairwise(found)]
    return words


def count_scores(value: WordCounts, fields: Sequence[str], rows: Sequence[Row]) -> Float[Tensor, "N C"]:
    """TF-IDF (sublinear counts, rows of length 1) times the classifier's weights."""
    column = {word: i for i, word in enumerate(value.words)}
    out = value.bias_C.repeat(len(rows), 1)
    for number, row in enumerate(rows):
        counts = Counter(column[w] for w in row_words(fields, row) if w in column)
        if counts:
            index = torch.tensor(list(counts))
            weight = (1.0 + torch.tensor([float(c) for c in counts.values()]).log()) * value.idf_V[index]
            out[number] += value.weight_CV[:, index] @ (weight / weight.norm())
    return out
