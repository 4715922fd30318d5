"""Encode rows as pieces: fill the template, tokenise in batches, and cut over-long rows at their shortenable part
only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch

from foreword.core.format import Format
from foreword.core.shapes import Int, Tensor
from foreword.core.template import field_text
from foreword.errors import ConfigError, DataError
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Batch, Encoded, SourceRow, collate, prepare
from foreword.models.encoding.chat import Chat
from foreword.models.encoding.label_layout import LabelPlan
from foreword.models.encoding.layout import lay_out
from foreword.models.encoding.row_items import Gap, Hole, Mark, RowItems, Text
from foreword.models.encoding.tokenise import CONTEXTS, Pieces
from foreword.models.encoding.truncate import Part, share_out, which
from foreword.models.encoding.verbalizer import Planner

__all__ = ["Batch", "Encoded", "Encoder", "PlainRow", "TextRow", "collate", "count_cut", "prepare"]


@runtime_checkable
class TextRow(Protocol):
    """Describe what is encoded: named texts, the row's own options if it has any, and where the row came from."""

    @property
    def fields(self) -> Mapping[str, str]: ...
    @property
    def options(self) -> Sequence[str]: ...
    @property
    def where(self) -> str: ...


@final
@dataclass(frozen=True)
class PlainRow:
    """Hold a row that comes from no particular place."""

    fields: Mapping[str, str]
    options: Sequence[str] = ()
    where: str = "the text given"


@final
@dataclass(frozen=True, eq=False)
class Encoder:
    """Encode rows in one format for one model. Build it once; `encode_rows` tokenises in batches.

    A row may have `room` columns, of which the template's own text and slots take `own`. `opening` holds the tokens
    that the text right before the first field begins with, for the texts most likely to follow; each row is checked for
    them. For an encoder-decoder model these are the encoder's, and its decoder has `target` columns of its own.
    """

    format: Format
    pieces: Pieces
    row: RowItems
    chat: Chat | None
    planner: Planner
    room: int
    own: int
    plan: LabelPlan | None
    opening: tuple[int, ...] = ()
    target: int = 0

    @staticmethod
    def build(lm: FrozenLM, format: Format, extra: int = 0) -> "Encoder":
        """Build an encoder of rows in a format for a model; `extra` columns of the context are left to a prefix.

        Raises: ConfigError for a template or label words that do not suit the model; ModelError for its tokenizer.
        """
        pieces = Pieces.of(lm.tokenizer, lm.kind)
        laid = lay_out(lm, format, pieces)
        row = laid.row
        limit = min(format.max_length or lm.dims.context, lm.dims.context)
        planner = Planner(pieces, laid.place, lm.kind, format.pieces == "mean", lm.name)
        plan = None
        if format.words:
            labels = (format.labels, format.words)
            [plan] = planner.plans([labels], "label", format.shift, format.temperature)
        own = row.constant + sum(len(pieces.start([item.own])[0]) for item in row.items if isinstance(item, Text))
        own -= row.written
        grows = plan.longest - 1 if plan else 0
        split = lm.kind == "seq2seq"
        if own + (0 if split else grows) > limit - extra or (split and row.written + grows > lm.dims.context - extra):
            raise ConfigError(
                f"The template alone takes {own + row.written} tokens, {len(row.init_P)} of them slots, its label "
                f"words {grows} more and the prefix {extra}; {lm.name!r} has room for {limit}. Use a shorter prompt or "
                "template, or a higher max_length."
            )
        target = lm.dims.context - extra if split else 0
        return Encoder(format, pieces, row, laid.chat, planner, limit - extra, own, plan, _opening(row, pieces), target)

    @property
    def shared(self) -> int:
        """Return how many columns rows begin with in common, unless a row's own text changes how they are tokenised."""
        return self.row.before_fields + len(self.opening)

    @property
    def prompt_length(self) -> int:
        """Return the number of positions of all slots together."""
        return len(self.row.init_P)

    @property
    def init_ids_P(self) -> Int[Tensor, "P"] | None:
        """Return the ids of the words that slots were written as, -1 at slots given as a length; None if no slot has
        words."""
        if all(i < 0 for i in self.row.init_P):
            return None
        return torch.tensor(self.row.init_P)

    def encode(self, fields: Mapping[str, str], options: Sequence[str] | None = None) -> Encoded:
        return self.encode_rows([PlainRow(fields, tuple(options or ()))])[0]

    def encode_rows(self, rows: Sequence[TextRow]) -> list[Encoded]:
        """Encode rows, tokenised in batches. Raises: DataError for a row that lacks a field, or that is too long and
        may not be cut."""
        return self._encode(rows, self._plans_of(rows))

    def encode_texts(self, rows: Sequence[TextRow], texts: Sequence[str]) -> list[Encoded]:
        """Encode rows with one text each in the answer's place: `score` gives its log-likelihood, normalised, by the
        chain rule (causal), or the sum over its masks (masked).

        Raises: DataError as `encode_rows` does, and for a text that the tokenizer has no pieces for.
        """
        try:
            return self._encode(rows, self.planner.texts(texts))
        except ConfigError as error:
            for row, text in zip(rows, texts, strict=True):
                try:
                    self.planner.texts([text])
                except ConfigError:
                    raise DataError(f"{row.where}: {error}") from None
            raise

    def _encode(self, rows: Sequence[TextRow], plans: Sequence[LabelPlan | None]) -> list[Encoded]:
        filled = self.filled(rows)
        if self.chat:
            self.chat.check([row.where for row in rows], filled)
        columns = []
        for index, item in enumerate(self.row.items):
            if isinstance(item, Text) and item.ids is None:
                texts = [item.filled(row[index]) for row in filled]
                once = list(dict.fromkeys(texts))  # a row stands here once for each of its references
                tokenise = self.pieces.start if item.first else self.pieces.following
                ids_of = dict(zip(once, tokenise(once), strict=True))
                columns.append([ids_of[text] for text in texts])
            else:
                columns.append([item.ids] * len(rows))
        encoded = []
        for i, (ids, plan) in enumerate(zip(zip(*columns, strict=True), plans, strict=True)):
            room = self._room(plan, rows[i].where)
            cut = max(0, sum(map(len, ids)) - self.row.written - room)
            if cut:
                ids = self._shorten(ids, filled[i], cut, room, rows[i].where)
            encoded.append(self._join(ids, plan, cut, rows[i].where))
        return encoded

    def _room(self, plan: LabelPlan | None, where: str) -> int:
        """Return the number of columns for the row's own text and the template's, beside its label words if those share
        the room."""
        grows = plan.longest - 1 if plan else 0
        if self.row.source is None:
            return self.room - grows
        if self.row.written + grows > self.target:
            raise DataError(
                f"{where}: the text to be written takes {grows + 1} tokens after {self.row.written} that the decoder "
                f"begins with, and there is room for {self.target}; shorten it, or the template."
            )
        return self.room

    @property
    def answer_room(self) -> int:
        """Return how many pieces an answer may have; beside the shortest possible row, if both share the room."""
        if self.row.source is None:
            return self.room - self.own + 1
        return self.target - self.row.written + 1

    def require_room(self, model: str, new: int) -> None:
        """Check that the decoder has room for this many new tokens. Raises: ConfigError if it has not."""
        if self.row.written + new > self.target:
            raise ConfigError(
                f"max_new_tokens {new} is more than the decoder of {model!r} has room for: {self.target} positions, of "
                f"which {self.row.written} are taken before it begins to write; ask for fewer."
            )

    def filled(self, rows: Sequence[TextRow]) -> list[dict[int, tuple[str, ...]]]:
        """Return for each row the texts of the holes of each item with holes, by the item's number."""
        holes = {
            index: [p for p in item.parts if isinstance(p, Hole)]
            for index, item in enumerate(self.row.items)
            if isinstance(item, Text) and item.ids is None
        }
        filled = []
        for row in rows:
            try:
                filled.append(
                    {index: tuple(h.trim(field_text(row.fields, h.name)) for h in hs) for index, hs in holes.items()}
                )
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from None
        return filled

    def _join(self, ids: Sequence[Sequence[int]], plan: LabelPlan | None, cut: int, where: str) -> Encoded:
        flat = [i for part in ids for i in part]
        if not flat or self.row.written == len(flat):
            raise DataError(f"{where}: the row has no tokens, so there is nothing to read; give it text.")
        slot_S = np.full(len(flat), -1, np.int64)
        answer, at = len(flat) - 1, 0
        for item, part in zip(self.row.items, ids, strict=True):
            if isinstance(item, Gap):
                slot_S[at : at + len(part)] = np.arange(item.start, item.start + len(part))
            elif isinstance(item, Mark):
                answer = at
            at += len(part)
        if self.row.source is not None:
            at, ids_S = len(flat) - self.row.written, np.array(flat, np.int64)
            return Encoded(ids_S[at:], slot_S[at:], answer - at, plan, cut, source=SourceRow(ids_S[:at], slot_S[:at]))
        constant = self.row.before_fields
        same = tuple(flat[constant : self.shared]) == self.opening
        return Encoded(np.array(flat, np.int64), slot_S, answer, plan, cut, self.shared if same else constant)

    def _shorten(
        self, ids: Sequence[Sequence[int]], filled: Mapping[int, Sequence[str]], cut: int, room: int, where: str
    ) -> list[Sequence[int]]:
        """Take `cut` pieces out of the shortenable fields, the longest first."""
        holes = [p for item in self.row.items if isinstance(item, Text) for p in item.parts if isinstance(p, Hole)]
        marked = any(hole.shorten for hole in holes)
        parts: list[Part] = []
        for index, texts in filled.items():
            item = self.row.items[index]
            assert isinstance(item, Text), "only text has holes"
            whole = item.filled(texts)
            spans = self.pieces.offsets(whole, item.first)
            for hole, start, end in item.holes_at(texts):
                if hole.shorten or not marked:
                    parts.append(Part(index, hole.name, which(whole, spans, start, end)))
        have = sum(len(part.pieces) for part in parts)
        if self.format.truncate == "error" or have < cut:
            names = ", ".join(f"{p.name!r} ({len(p.pieces)})" for p in parts) or "none"
            why = "and truncate is 'error'" if self.format.truncate == "error" else "and that much cannot be cut"
            raise DataError(
                f"{where}: the row takes {room + cut} tokens and there is room for {room}, {why}: the template takes "
                f"{self.own}, and of the fields can be cut: {names}. Shorten the text, the template or the prompt, "
                "mark the field to cut with |shorten, or choose truncate tail, head or middle."
            )
        kept = list(ids)
        drop: dict[int, set[int]] = {}
        for part, count in zip(parts, share_out([len(p.pieces) for p in parts], cut), strict=True):
            drop.setdefault(part.item, set()).update(part.taken(count, self.format.truncate))
        for index, gone in drop.items():
            kept[index] = [i for n, i in enumerate(ids[index]) if n not in gone]
        return kept

    def _plans_of(self, rows: Sequence[TextRow]) -> list[LabelPlan | None]:
        """Return the plan of each row. Rows with the same options share one. None is kept: every row may bring new
        options."""
        options = list(dict.fromkeys(tuple(row.options) for row in rows if row.options))
        if not options:
            return [self.plan] * len(rows)
        try:
            sets = [(one, [(o,) for o in one]) for one in options]
            plans = self.planner.plans(sets, "option", temperature=self.format.temperature)
        except ConfigError:
            self._blame(rows)
            raise
        plan_of = dict(zip(options, plans, strict=True))
        return [plan_of[tuple(row.options)] if row.options else self.plan for row in rows]

    def _blame(self, rows: Sequence[TextRow]) -> None:
        """Raise a DataError that names the first row whose options cannot be used."""
        for row in rows:
            try:
                self.planner.plans([(row.options, [(o,) for o in row.options])], "option")
            except ConfigError as error:
                raise DataError(f"{row.where}: {error}") from None


def _opening(row: RowItems, pieces: Pieces) -> tuple[int, ...]:
    """Return the tokens of the text right before the first field that stay the same before texts of several kinds."""
    item = next((item for item in row.items if item.ids is None or isinstance(item, Mark)), None)
    if not isinstance(item, Text) or isinstance(item.parts[0], Hole):
        return ()
    ahead = ""
    for part in item.parts:
        if isinstance(part, Hole):
            break
        ahead += part
    texts = [(ahead + probe).lstrip() if item.left else ahead + probe for probe in ("", *CONTEXTS)]
    tokens = (pieces.start if item.first else pieces.following)(texts)
    return tuple(column[0] for column in takewhile(lambda column: len({*column}) == 1, zip(*tokens, strict=False)))


def count_cut(encoded: Sequence[Encoded]) -> tuple[int, int]:
    """Return how many rows were cut, and how many tokens were taken from them."""
    return sum(e.cut > 0 for e in encoded), sum(e.cut for e in encoded)
