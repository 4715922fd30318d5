"""Encode the rows that a learner reads, with their labels, or with the texts that answer them and their ends."""

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
from foreword.inference.features import EncodedRows
from foreword.inference.generation import written_form
from foreword.inference.metrics import require_targets
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.encoding.label_layout import LabelPlan
from foreword.tasks.rows import Row, label_of
from foreword.training.joint_step import TrainingExample


@final
@dataclass(frozen=True, eq=False)
class ExampleRows:
    """Hold encoded rows with their labels.

    For answers in text there are no labels: `encoded` has every reference of every row, and `of_N[n]` is the range of
    those of row n.
    """

    encoded: Sequence[Encoded]
    label_N: Sequence[int]
    of_N: Sequence[range] = ()

    @staticmethod
    def of(
        lm: FrozenLM,
        form: Format,
        rows: Sequence[Row],
        extra: int,
        texts: bool,
        encoded_rows: EncodedRows | None = None,
    ) -> "ExampleRows":
        """Encode rows, or take them from `encoded_rows`. If answers are `texts`, encode each row's references.

        Raises: DataError for a row without its label or target, or that has no room.
        """
        if not texts:
            encoded = (encoded_rows or EncodedRows()).of(lm, form, rows, extra)
            return ExampleRows(encoded, [label_of(row) for row in rows])
        ends = [0, *accumulate(len(row.targets) for row in rows)]
        return ExampleRows(encode_targets(lm, form, rows, extra), (), [range(a, b) for a, b in pairwise(ends)])

    def __len__(self) -> int:
        return len(self.of_N) or len(self.label_N)

    @property
    def pieces_X(self) -> list[int]:
        """Return how many tokens each reference has, its end included."""
        return [_plan(encoded).longest for encoded in self.encoded]

    def examples(self, owner: int, rows: Sequence[int], first: int, seed: int) -> list[TrainingExample]:
        """Build the training examples of one step, starting at position `first` in the stream of rows.

        Each example is weighted so that the losses sum to their mean over labels, or over tokens of references. Except
        for a factor, the latter is the loss of Li & Liang 2021, eq. 2, which sums over each sentence. In R epochs a row
        with R references shows each of them once, in a drawn order.
        """
        if not self.of_N:
            return [TrainingExample(owner, self.encoded[n], self.label_N[n], 1.0 / len(rows)) for n in rows]
        epochs = [(first + i) // len(self) for i in range(len(rows))]
        chosen = [self.encoded[self._reference(n, epoch, seed)] for n, epoch in zip(rows, epochs, strict=True)]
        share = 1.0 / sum(_plan(encoded).longest for encoded in chosen)
        return [TrainingExample(owner, encoded, None, share) for encoded in chosen]

    def _reference(self, row: int, epoch: int, seed: int) -> int:
        references = self.of_N[row]
        turn, at = divmod(epoch, len(references))
        return references[int(np.random.default_rng([seed, row, turn, 1]).permutation(len(references))[at])]


def encode_targets(lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int = 0) -> list[Encoded]:
    """Encode every target of every row, as the text that the model generates after the row, with its end.

    The end is the model's own end token, which stops decoding whatever the stop strings of the format are. A model
    without one learns the first stop string.

    Raises: DataError for a row without a target, or a target without tokens, with a stop string inside, or without
    room; ConfigError if the format does not say how text is generated.
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
    """Return the mean negative log-likelihood per token of all references of all rows, the ends of texts included.

    Raises: DataError, ConfigError as `encode_targets` says.
    """
    read = ExampleRows.of(lm, form, rows, value.text_start, texts=True)
    [score_X1] = stacked_scores(lm, [value], [read.encoded], tokens_per_batch)
    return mean_nll(read, score_X1)


def mean_nll(rows: ExampleRows, score_XC: Float[Tensor, "X C"]) -> float:
    """Return minus the mean per token of the references' scores, which are in the first column."""
    return -float(score_XC[:, 0].double().sum()) / max(1, sum(rows.pieces_X))


def _plans(encoder: Encoder, pairs: Sequence[tuple[Row, str]]) -> list[LabelPlan]:
    """Return the tokens of each target alone. Raises: DataError that names the row of a target that has none."""
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
    lm: FrozenLM, encoder: Encoder, texts: Sequence[str], plans: Sequence[LabelPlan], stops: Sequence[str]
) -> list[tuple[int, ...]]:
    """Return the tokens of each text, with the end of the text after them."""
    if lm.stops:
        turn = lm.turn_end if encoder.chat else None
        own = lm.tokenizer.eos_token_id if turn is None else turn
        end = own if own in lm.stops else min(lm.stops)
        return [(*plan.words[0][0], end) for plan in plans]
    stop = stops[0] if stops else ""
    planner = encoder.planner
    return [tuple(ids) for ids in planner.place.ids(planner.pieces, [text.strip() + stop for text in texts])]


def _plan(of: Encoded | LabelPlan | None) -> LabelPlan:
    plan = of.plan if isinstance(of, Encoded) else of
    assert plan is not None, "a row with its reference has a plan"
    return plan


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
