"""Make slots to search of the words before the answer in a format, and remember those words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from foreword.core.format import Format
from foreword.core.shapes import Int
from foreword.core.template import AnswerPlace, Literal, Part, Soft, Template, Turn
from foreword.errors import ConfigError
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder

Prompt = tuple[int, ...]  # the token of each slot, in order


@final
@dataclass(frozen=True, eq=False)
class Slotted:
    """Hold a format with slots, encoded by `encoder`.

    `words` are the ids that the slots' own words had, the last of them at the last slots; None if there were none.
    """

    format: Format
    encoder: Encoder
    words: Prompt | None

    @property
    def length(self) -> int:
        return self.encoder.prompt_length


def with_slots(lm: FrozenLM, form: Format, length: int) -> Slotted:
    """Return the format with its own slots; without any, the words before the answer become slots, `length` at least.

    "{text} It was {mask}." gives "{text} {soft:5} {mask}.", and `words` are "It was". If no words stand there, as at
    the end of a chat's last message, the slots are put there.

    Raises: ConfigError as `Encoder.build` says.
    """
    template = form.template
    if template.slots:
        encoder = Encoder.build(lm, form)
        init = encoder.row.init_P
        return Slotted(form, encoder, None if min(init) < 0 else tuple(init))
    written = None if template.chat else _worded(template)
    if written is None:
        spaced = replace(form, template=_parsed(template.with_soft(length, "answer")))
        return Slotted(spaced, Encoder.build(lm, spaced), None)
    words = tuple(Encoder.build(lm, replace(form, template=_with(template, written, None))).row.init_P)
    slotted = replace(form, template=_with(template, written, max(length, len(words))))
    return Slotted(slotted, Encoder.build(lm, slotted), words)


@dataclass(frozen=True)
class _Words:
    """Hold words within the literal at `index`: the text before them, the words, and the space after."""

    index: int
    before: str
    words: str
    after: str


def _worded(template: Template) -> _Words | None:
    """Return the words of the template's own text right before the answer, from the last line break on, or None."""
    parts = template.parts
    at = next((i for i, p in enumerate(parts) if isinstance(p, AnswerPlace)), len(parts)) - 1
    last = parts[at] if at >= 0 else None
    if not isinstance(last, Literal) or not last.text.strip():
        return None
    body = last.text.rstrip()
    start = body.rfind("\n") + 1
    words = body[start:].lstrip()
    if not words:
        return None
    before = body[: len(body) - len(words)]
    return _Words(at, before, words, last.text[len(body) :])


def _with(template: Template, found: _Words, length: int | None) -> Template:
    """Return the template with a slot in place of the words: of their own length, or of the one given."""
    slot = Soft(words=found.words) if length is None else Soft(length=length)
    middle: list[Part] = [Literal(found.before)] if found.before else []
    middle += [slot, Literal(found.after)] if found.after else [slot]
    parts = template.parts
    return _parsed(Template((Turn("", (*parts[: found.index], *middle, *parts[found.index + 1 :])),)))


def _parsed(template: Template) -> Template:
    """Return the template that its source stands for: neighbouring literals are one."""
    return Template.parse(template.source)


def worded(template: Template, texts: tuple[str, ...]) -> Template:
    """Return the template with text in its slots; text brings its own spaces, and those before a slot are removed."""
    given = iter(texts)
    turns = tuple(
        Turn(turn.role, replaced(turn.parts, [*map(Literal, _first(given, turn))])) for turn in template.turns
    )
    return _parsed(Template(turns))


def replaced(parts: Sequence[Part], instead: Sequence[Part]) -> tuple[Part, ...]:
    """Return the parts with others in place of the slots, and without the spaces before a slot."""
    given = iter(instead)
    results: list[Part] = []
    for part in parts:
        if not isinstance(part, Soft):
            results.append(part)
            continue
        last = results[-1] if results else None
        if isinstance(last, Literal):
            text = last.text.rstrip(" ")
            results[-1:] = [Literal(text)] if text else []
        results.append(next(given))
    return tuple(results)


def _first(given: Iterator[str], turn: Turn) -> list[str]:
    """Return the texts of one turn's slots."""
    return [next(given) for part in turn.parts if isinstance(part, Soft)]


def spans(encoder: Encoder) -> list[range]:
    """Return the slot numbers of each of the template's gaps, in order."""
    from foreword.models.encoding.row_items import Gap

    return [range(item.start, item.start + len(item.ids)) for item in encoder.row.items if isinstance(item, Gap)]


def columns_of(slot_S: Int[np.ndarray, "S"], length: int) -> Int[np.ndarray, "T"]:
    """Return the column of each slot of a row.

    Raises: ConfigError if the row has not as many slots as the prompt has tokens.
    """
    at = np.flatnonzero(slot_S >= 0)
    if len(at) != length:
        raise ConfigError(
            f"The row has {len(at)} slots and the prompt {length} tokens; give as many as there are slots."
        )
    columns = np.empty(length, np.int64)
    columns[slot_S[at]] = at
    return columns
