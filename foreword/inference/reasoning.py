"""Score labels that a model reasons about before it answers, by votes or by label words after the reasoning."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.shapes import Float, Tensor
from foreword.core.template import AnswerPlace, Field, Literal, Template, Turn
from foreword.inference.answers import Answered, answer_rows, choices_of
from foreword.inference.batched import stacked_scores
from foreword.inference.generation import ALL, Pairs, write_samples
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.models.generate import GeneratedText
from foreword.tasks.rows import Row

REASONED = "the model's reasoning"  # the name of the field that holds it, which no column has


def reasoned_scores(lm: FrozenLM, pairs: Pairs) -> list[Float[Tensor, "N C"]]:
    """Return log-probabilities of each row's labels, for artefacts whose format has labels or options and a decoding.

    If answers are extracted from the texts, the probabilities are shares of the votes, with one more vote spread over
    all labels and no answer. The last column is that of no answer, which is the likeliest for rows without any answer.
    If label words are scored after the reasoning, they are the mean of the samples' probabilities.
    """
    voting = [i for i, (a, _) in enumerate(pairs) if a.format.decoding and a.format.decoding.conclude is None]
    scoring = [i for i in range(len(pairs)) if i not in set(voting)]
    results: dict[int, Tensor] = {}
    for i, answered in zip(voting, answer_rows(lm, [pairs[i] for i in voting]), strict=True):
        results[i] = vote_scores(pairs[i][0].format, pairs[i][1], answered)
    texts = _all_texts(lm, [pairs[i] for i in scoring])
    for i, written in zip(scoring, texts, strict=True):
        results[i] = _concluded_scores(lm, pairs[i][0], pairs[i][1], written)
    return [results[i] for i in range(len(pairs))]


def vote_scores(form: Format, rows: Sequence[Row], answered: Sequence[Answered]) -> Float[Tensor, "N C"]:
    """Return the shares of the votes as log-probabilities (rows, labels + 1), with no answer last."""
    words = [[choice[0] for choice in choices_of(form, row)] for row in rows]
    most = max(map(len, words), default=0)
    score_NC = torch.full((len(rows), most + 1), -torch.inf, dtype=torch.float64)
    for n, (names, one) in enumerate(zip(words, answered, strict=True)):
        votes = [one.votes.get(name, 0.0) for name in names]
        # Of equal votes the first sample's wins, by less than any vote weighs.
        votes = [vote + 1e-9 * (name == one.answer) for vote, name in zip(votes, names, strict=True)]
        silent = 0.0 if any(votes) else 1.0
        share = 1 / (len(names) + 1)
        total = sum(votes) + silent + 1
        score_NC[n, : len(names)] = torch.tensor([(vote + share) / total for vote in votes]).log()
        score_NC[n, most] = torch.tensor((silent + share) / total).log()
    return score_NC


def _all_texts(lm: FrozenLM, pairs: Pairs) -> list[list[list[str]]]:
    """Generate every sample's text, by artefact and row."""
    results: list[list[dict[int, str]]] = [[{} for _ in rows] for _, rows in pairs]

    def keep(artefact: int, row: int, sample: int, written: GeneratedText) -> int:
        results[artefact][row][sample] = written.text
        return ALL

    write_samples(lm, pairs, keep)
    return [[[texts[s] for s in sorted(texts)] for texts in rows] for rows in results]


def concluded_form(form: Format) -> Format:
    """Return the format of the second stage (Kojima et al. 2022).

    A row is followed by the reasoning that was generated after it, and by the words before the answer.
    """
    assert form.decoding is not None and form.decoding.conclude is not None
    reasoning, conclude = Field(REASONED), form.decoding.conclude
    template = form.template
    if template.chat:
        turns = (Turn("assistant", (reasoning,)), Turn("user", (Literal(conclude),)))
        return replace(form, template=Template((*template.turns, *turns)), decoding=None)
    before = [part for part in template.turns[0].parts if not isinstance(part, AnswerPlace)]
    last = before[-1] if before else None
    space = (Literal(" "),) if isinstance(last, Literal) and not last.text[-1:].isspace() else ()
    parts = (*before, *space, reasoning, Literal(f" {conclude} "), AnswerPlace())
    return replace(form, template=Template((Turn("", parts),)), decoding=None)


def _concluded_scores(
    lm: FrozenLM, artefact: Artefact, rows: Sequence[Row], texts: Sequence[Sequence[str]]
) -> Float[Tensor, "N C"]:
    """Return the log of the mean over samples of the label words' probabilities after each reasoning.

    The shift of the format is added once, to the log of the mean.
    """
    if not rows:
        return torch.zeros(0, 0)
    asked = [
        replace(row, fields={**row.fields, REASONED: text.strip()})
        for row, some in zip(rows, texts, strict=True)
        for text in some
    ]
    form = artefact.format
    plain = replace(concluded_form(form), shift=(), temperature=1.0)
    encoder = Encoder.build(lm, plain, artefact.value.text_start)
    score_XC = stacked_scores(lm, [artefact.value], [encoder.encode_rows(asked)])[0].double().log_softmax(-1)
    parts = score_XC.split([len(some) for some in texts])
    mean_NC = torch.stack([part.logsumexp(0) - math.log(len(part)) for part in parts])
    # Calibrated once for the mean, as it was read when the shift was found.
    return mean_NC + torch.tensor(form.shift, dtype=mean_NC.dtype).to(mean_NC) if form.shift else mean_NC
