"""Rows that a learner reads, encoded: with their labels, or with the texts that answer them, each with its end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import final

import numpy as np

from foreword.core.format import Format
from foreword.core.shapes import Float, Tensor
from foreword.core.values import Learnt
from foreword.errors import ConfigError, DataError
from foreword.inference.batched import stacked_scores
from foreword.inference.features import encode_rows
from foreword.inference.generation import written_form
from foreword.inference.metrics import label_of, require_targets
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat import turn_end
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.encoding.label_layout import Plan
from foreword.tasks.rows import Row
from foreword.training.joint_step import Example


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows with their labels. Where answers are texts, `encoded` has every reference of every row, `of_N` says
    which of them are row n's, and there are no labels.
    """

    encoded: Sequence[Encoded]
    label_N: Sequence[int]
    of_N: Sequence[range] = ()

    @staticmethod
    def of(lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int, texts: bool) -> "Rows":
        """Raises: DataError for a row without its label or target, or that has no room."""
        if not texts:
            return Rows(encode_rows(lm, form, rows, extra), [label_of(row) for row in rows])
        ends = [0, *accumulate(len(row.targets) for row in rows)]
        return Rows(encode_targets(lm, form, rows, extra), (), [range(a, b) for a, b in pairwise(ends)])

    def __len__(self) -> int:
        return len(self.of_N) or len(self.label_N)

    @property
    def pieces_X(self) -> list[int]:
        """How many pieces each reference has, its end included."""
        return [_plan(encoded).longest for encoded in self.encoded]

    def examples(self, owner: int, rows: Sequence[int], first: int, seed: int) -> list[Example]:
        """The rows of a step, which are number `first` and on of all that the learner reads; shares make their mean.

        A mean over labels, or over pieces of references: so the loss is that of the paper, a sum for each sentence (Li
        & Liang 2021, eq. 2), but for a factor. In R epochs a row shows its R references once each, in a drawn order.
        """
        if not self.of_N:
            return [Example(owner, self.encoded[n], self.label_N[n], 1.0 / len(rows)) for n in rows]
        epochs = [(first + i) // len(self) for i in range(len(rows))]
        chosen = [self.encoded[self._reference(n, epoch, seed)] for n, epoch in zip(rows, epochs, strict=True)]
        share = 1.0 / sum(_plan(encoded).longest for encoded in chosen)
        return [Example(owner, encoded, None, share) for encoded in chosen]

    def _reference(self, row: int, epoch: int, seed: int) -> int:
        own = self.of_N[row]
        turn, at = divmod(epoch, len(own))
        return own[int(np.random.default_rng([seed, row, turn, 1]).permutation(len(own))[at])]


def encode_targets(lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int = 0) -> list[Encoded]:
    """Every target of every row, as the text that the model is to write after the row, up to where it ends.

    The end is the model's own piece for it, which stops decoding whatever the format's stop strings are; a model
    without one is taught the first stop string.

    Raises: DataError for a row without a target, a target without pieces, with a stop string inside, or for which there
    is no room; ConfigError where the format does not say how text is written.
    """
    if form.decoding is None:
        raise ConfigError("The format does not say how text is written (it has no decoding); use the task's own.")
    require_targets(rows)
    stops = form.decoding.stop_strings
    pairs = [(row, target) for row in rows for target in row.targets]
    for row, target in pairs:
        if inside := next((stop for stop in stops if stop in target), None):
            raise DataError(
                f"{row.where}: the target {_short(target)!r} has {inside!r} inside, where the text would end; give "
                "other stop strings (--stop), or targets without it."
            )
    encoder = Encoder.build(lm, written_form(form), extra)
    plans = _plans(encoder, pairs)
    texts = [target for _, target in pairs]
    words = _ended(lm, encoder, texts, plans, stops)
    for (row, target), pieces in zip(pairs, words, strict=True):
        if lm.kind == "causal" and encoder.own + len(pieces) - 1 > encoder.room:
            raise DataError(
                f"{row.where}: the target {_short(target)!r} has {len(pieces)} pieces and the template {encoder.own}; "
                f"{lm.name!r} has room for {encoder.room} of both. Shorten the target, or take a higher max_length."
            )
    longer = max(
        (len(w) - _plan(p).longest for w, p in zip(words, encoder.planner.texts(texts), strict=True)), default=0
    )
    if lm.kind == "seq2seq":  # the decoder has its own room, and says itself what does not fit
        encoder = replace(encoder, target=encoder.target - longer)
    else:
        encoder = replace(encoder, room=encoder.room - longer)
    encoded = encoder.encode_texts([row for row, _ in pairs], texts)
    return [replace(e, plan=replace(_plan(e.plan), words=((w,),))) for e, w in zip(encoded, words, strict=True)]


def reference_nll(
    lm: FrozenLM, value: Learnt, form: Format, rows: Sequence[Row], tokens_per_batch: int | None = None
) -> float:
    """Mean negative log-likelihood per piece of all references of all rows, the ends of texts included.

    Raises: DataError, ConfigError as `encode_targets` says.
    """
    read = Rows.of(lm, form, rows, value.text_start, texts=True)
    [score_X1] = stacked_scores(lm, [value], [read.encoded], tokens_per_batch)
    return mean_nll(read, score_X1)


def mean_nll(rows: Rows, score_XC: Float[Tensor, "X C"]) -> float:
    """The scores of all references, in the first column, as one mean per piece."""
    return -float(score_XC[:, 0].double().sum()) / max(1, sum(rows.pieces_X))


def _plans(encoder: Encoder, pairs: Sequence[tuple[Row, str]]) -> list[Plan]:
    """The pieces of each target alone. Raises: DataError that names the row of a target that has none."""
    try:
        return encoder.planner.texts([target for _, target in pairs])
    except ConfigError:
        for row, target in pairs:
            try:
                encoder.planner.texts([target])
            except ConfigError as error:
                raise DataError(f"{row.where}: {error}") from None
        raise


def _ended(
    lm: FrozenLM, encoder: Encoder, texts: Sequence[str], plans: Sequence[Plan], stops: Sequence[str]
) -> list[tuple[int, ...]]:
    """Each text's pieces with the end of the text after them."""
    if lm.stops:
        turn = turn_end(lm.tokenizer) if encoder.chat else None
        own = lm.tokenizer.eos_token_id if turn is None else turn
        end = own if own in lm.stops else min(lm.stops)
        return [(*plan.words[0][0], end) for plan in plans]
    stop = stops[0] if stops else ""
    planner = encoder.planner
    return [tuple(ids) for ids in planner.place.ids(planner.pieces, [text.strip() + stop for text in texts])]


def _plan(of: Encoded | Plan | None) -> Plan:
    plan = of.plan if isinstance(of, Encoded) else of
    assert plan is not None, "a row with its reference has a plan"
    return plan


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
