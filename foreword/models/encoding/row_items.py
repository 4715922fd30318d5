"""Turn a template's parts into the items of a row; what is the same in every row is tokenised once, here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from foreword.core.template import AnswerPlace, Decoder, Demos, Field, Literal, Soft
from foreword.errors import ConfigError
from foreword.models.encoding.tokenise import CONTEXTS, Pieces


@final
@dataclass(frozen=True)
class Hole:
    """Mark the place of a field's text; chat templates may strip the text on either side."""

    name: str
    shorten: bool = False
    strip_left: bool = False
    strip_right: bool = False

    def trim(self, text: str) -> str:
        text = text.lstrip() if self.strip_left else text
        return text.rstrip() if self.strip_right else text


@final
@dataclass(frozen=True)
class Text:
    """Hold text that is tokenised as one string; `ids` holds its tokens if it has no holes.

    `first`: only slots and what the tokenizer adds stand before it. `left`, `right`: the special token before it, or
    after it, takes the whitespace between.
    """

    parts: tuple[str | Hole, ...]
    first: bool
    left: bool
    right: bool
    ids: tuple[int, ...] | None

    def filled(self, texts: Sequence[str]) -> str:
        """Return the whole text, with these texts in its holes, in order."""
        return self.trim("".join(self._parts(texts)))

    def trim(self, whole: str) -> str:
        whole = whole.lstrip() if self.left else whole
        return whole.rstrip() if self.right else whole

    def holes_at(self, texts: Sequence[str]) -> list[tuple[Hole, int, int]]:
        """Return the holes, and where in the filled text each of them starts and ends."""
        raw = "".join(parts := self._parts(texts))
        shift = len(raw) - len(raw.lstrip()) if self.left else 0
        last = len(self.trim(raw))
        result, at = [], -shift
        for part, text in zip(self.parts, parts, strict=True):
            if isinstance(part, Hole):
                result.append((part, max(0, at), min(last, at + len(text))))
            at += len(text)
        return result

    def _parts(self, texts: Sequence[str]) -> list[str]:
        given = iter(texts)
        return [next(given) if isinstance(part, Hole) else part for part in self.parts]

    @property
    def own(self) -> str:
        """Return the template's part of a text with holes."""
        return "" if self.ids is not None else "".join(part for part in self.parts if isinstance(part, str))


@final
@dataclass(frozen=True)
class Gap:
    """Hold a slot: positions of the prompt from `start` on; `ids` are the words that it was written as, or filler."""

    start: int
    ids: tuple[int, ...]


@final
@dataclass(frozen=True)
class Fixed:
    """Hold a special token: `written` in the template, or added by the tokenizer."""

    ids: tuple[int, ...]
    written: bool


@final
@dataclass(frozen=True)
class Mark:
    """Hold the mask."""

    ids: tuple[int, ...]


Item = Text | Gap | Fixed | Mark
Part = Literal | Hole | Soft | AnswerPlace


@final
@dataclass(frozen=True)
class RowItems:
    """Hold the items of every row of a template, and the words that positions of the prompt were given as (-1: none).

    The first `source` items are an encoder's, and the others its decoder's; None if the model reads all as one.
    """

    items: tuple[Item, ...]
    init_P: tuple[int, ...]
    source: int | None = None

    @property
    def constant(self) -> int:
        """Return the number of columns that are not text of the row's fields."""
        return sum(len(item.ids) for item in self.items if item.ids is not None)

    @property
    def written(self) -> int:
        """Return the number of columns that a decoder begins with, the same in every row."""
        return 0 if self.source is None else sum(len(item.ids or ()) for item in self.items[self.source :])

    @property
    def before_fields(self) -> int:
        """Return the number of columns before the first text of a field, or before the mask."""
        count = 0
        for item in self.items:
            if item.ids is None or isinstance(item, Mark):
                break
            count += len(item.ids)
        return count


def with_holes(parts: Sequence[Literal | Field | Soft | AnswerPlace | Demos | Decoder]) -> list[Part]:
    """Return the parts with a hole for each field. Raises: ConfigError if demonstrations have not been written into
    their place."""
    results: list[Part] = []
    for part in parts:
        assert not isinstance(part, Decoder), "the two halves of a template are laid out apart"
        if isinstance(part, Demos):
            raise ConfigError(
                "The template has {demos}, which few-shot and few-shot-knn fill; remove it, or use those."
            )
        results.append(Hole(part.name, part.shorten) if isinstance(part, Field) else part)
    return results


def with_answer(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with the answer at the end, after a space, if the template does not say where it is."""
    if any(isinstance(part, AnswerPlace) for part in parts):
        return list(parts)
    last = parts[-1] if parts else None
    space = isinstance(last, Literal) and not last.text[-1:].isspace()
    return [*parts, *([Literal(" ")] if space else []), AnswerPlace()]


def layout_row(
    parts: Sequence[Part], pieces: Pieces, mask_id: int | None, filler_id: int, bare: bool, soft_first: bool
) -> RowItems:
    """Return the items of a row. `mask_id` is None for causal models, whose answer is the row's end. `bare` rows
    (chats) get no special tokens but those in their text; others have them around the row, after leading slots if
    `soft_first`."""
    flat = _flatten(parts, pieces)
    if not bare:
        flat = _with_special(flat, pieces, soft_first)
    items: list[Item] = []
    init: list[int] = []
    group: list[str | Hole] = []

    def flush(next_id: int | None) -> None:
        if group:
            items.append(_text(tuple(group), items, pieces, next_id))
            group.clear()

    for part in flat:
        if isinstance(part, str | Hole):
            group.append(part)
            continue
        spaces = ""
        if isinstance(part, Soft | AnswerPlace) and group and isinstance(group[-1], str):
            text = str(group.pop())
            kept = text.rstrip(" ")
            spaces = text[len(kept) :]
            group.extend([kept] if kept else [])
        if isinstance(part, AnswerPlace):
            flush(mask_id)
            if mask_id is not None:
                items.append(Mark((mask_id,)))
        elif isinstance(part, Soft):
            before = group[-1] if group and isinstance(group[-1], str) else ""
            flush(None)
            ids = _slot_ids(part, before, spaces, items, pieces)
            items.append(Gap(len(init), ids or (filler_id,) * (part.length or 0)))
            init += ids or [-1] * (part.length or 0)
        else:
            flush(part.ids[0])
            items.append(part)
    flush(None)
    return RowItems(tuple(items), tuple(init))


Flat = list[str | Fixed | Hole | Soft | AnswerPlace]


def _flatten(parts: Sequence[Part], pieces: Pieces) -> Flat:
    """Split literals into text and the special tokens written in them."""
    flat: Flat = []
    for part in parts:
        if isinstance(part, Literal) and part.data:
            flat.append(part.text)
        elif isinstance(part, Literal):
            flat += [p if isinstance(p, str) else Fixed((p,), True) for p in pieces.split_special(part.text)]
        else:
            flat.append(part)
    return flat


def _with_special(flat: Flat, pieces: Pieces, soft_first: bool) -> Flat:
    """Put the tokenizer's special tokens around the row, unless the template wrote them itself."""
    softs = 0
    while softs < len(flat) and isinstance(flat[softs], Soft):
        softs += 1
    before: Flat = [Fixed((i,), False) for i in pieces.before]
    end: Flat = [Fixed((i,), False) for i in pieces.after_row]
    if [Fixed((i,), True) for i in pieces.before] == flat[softs : softs + len(before)]:
        before, flat = flat[softs : softs + len(before)], flat[:softs] + flat[softs + len(before) :]
    if end and [Fixed((i,), True) for i in pieces.after_row] == flat[-len(end) :]:
        end = []
    at = softs if soft_first else 0
    return [*flat[:at], *before, *flat[at:], *end]


def _text(group: tuple[str | Hole, ...], items: list[Item], pieces: Pieces, next_id: int | None) -> Text:
    first = not any(isinstance(item, Text | Mark) or (isinstance(item, Fixed) and item.written) for item in items)
    if any(isinstance(item, Gap) for item in items) and isinstance(group[0], str) and group[0][:1].isspace():
        first = False  # the space separates it from the slot, so it does not begin the row
    last = items[-1] if items else None
    special = last.ids[0] if isinstance(last, Mark) or (isinstance(last, Fixed) and last.written) else None
    left = special is not None and pieces.strips(special)[1]
    text = Text(group, first, left, next_id is not None and pieces.strips(next_id)[0], None)
    if any(isinstance(part, Hole) for part in group):
        return text
    [ids] = (pieces.start if first else pieces.following)([text.filled(())])
    return replace(text, ids=tuple(ids))


def _slot_ids(soft: Soft, before: str, spaces: str, items: list[Item], pieces: Pieces) -> tuple[int, ...]:
    """Return the pieces of a slot's words, as they are in its place; empty for a slot that was given as a length."""
    if soft.words is None:
        return ()
    if before or spaces:
        return tuple(pieces.after([before, *CONTEXTS] if before else CONTEXTS, [spaces + soft.words])[0])
    begins = not any(isinstance(item, Text | Mark | Gap) for item in items)
    return tuple((pieces.start if begins else pieces.following)([soft.words])[0])
