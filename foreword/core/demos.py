"""Write demonstrations into a template: rows with their answers, each as the template's own text filled with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from foreword.core.template import (
    AnswerPlace,
    Decoder,
    Demos,
    Field,
    Literal,
    Part,
    Soft,
    Template,
    Turn,
    filled,
    joined,
    literal,
)
from foreword.errors import ConfigError


@final
@dataclass(frozen=True)
class Example:
    """Hold the texts of a row, and the word that answers it."""

    fields: Mapping[str, str]
    word: str


def with_demos(template: Template, examples: Sequence[Example], separator: str, *, data: bool = False) -> Template:
    """Return the template with demonstrations in its `{demos}`, or at its front; in a chat, as earlier turns.

    A demonstration is the part of the template on the answer's side of `{demos}`, filled with an example, so that an
    instruction before `{demos}` is written once. Text of the examples stays data: no token in it is a special one.
    `data` says that the words are rows' texts too, as options are, and not the format's own label words.

    Raises: ConfigError for slots, for which a demonstration has no vectors, for fields on the other side, and for a
    template without fields.
    """
    if template.slots:
        raise ConfigError(
            f"The template {template.source!r} has {{soft:...}} slots, and demonstrations are words; remove them."
        )
    if not template.fields:
        raise ConfigError(f"The template {template.source!r} has no field to show an example in; give one as {{text}}.")
    return _chat(template, examples, data) if template.chat else _plain(template, examples, separator, data)


def _plain(template: Template, examples: Sequence[Example], separator: str, data: bool) -> Template:
    parts = template.parts if Demos() in template.parts else (Demos(), *template.parts)
    at = parts.index(Demos())
    before, after = parts[:at], parts[at + 1 :]
    first = template.answer is None or template.answer in after
    body, rest = (after, before) if first else (before, after)
    if any(isinstance(p, Field) for p in rest):
        raise ConfigError(
            f"The template {template.source!r} has fields on both sides of {{demos}}; put {{demos}} before or after "
            "all fields and the answer."
        )
    gap = Literal(separator)
    shown: list[Part] = []
    for example in examples:
        one = _filled(body, example, data)
        shown += [*one, gap] if first else [gap, *one]
    return Template((Turn("", joined([*before, *shown, *after])),))


def _filled(body: Sequence[Part], example: Example, data: bool) -> list[Part]:
    """Return the parts of one demonstration. After a field the answer has one space, as when it is scored."""
    parts: list[Part] = []
    answer = next((p for p in body if isinstance(p, AnswerPlace)), None)
    for part in filled([*body, *([] if answer else [AnswerPlace()])], example.fields):
        if isinstance(part, AnswerPlace):
            last = parts[-1] if parts else None
            bare = last is not None and (last.data if isinstance(last, Literal) else True)
            ends = not answer and isinstance(last, Literal) and not last.text[-1:].isspace()
            parts += [*([Literal(" ")] if bare or ends else []), literal(example.word, data)]
        elif isinstance(part, Decoder):  # an encoder reads the whole demonstration, what its decoder would write too
            parts.append(Literal(" "))
        else:
            assert not isinstance(part, Soft), "slots were refused"
            parts.append(part)
    return parts


def _chat(template: Template, examples: Sequence[Example], data: bool) -> Template:
    """Return the chat with earlier turns for each example: the template's messages, then the assistant's answer."""
    said = next((i for i, t in enumerate(template.turns) if t.role != "system"), len(template.turns))
    system, asked = template.turns[:said], template.turns[said:]
    if any(isinstance(p, Field) for turn in system for p in turn.parts) or not asked:
        raise ConfigError("A chat with demonstrations needs its fields in messages of the user, not of the system.")
    turns: list[Turn] = []
    for example in examples:
        for turn in asked:
            turns.append(Turn(turn.role, joined(filled(turn.parts, example.fields))))
        turns.append(Turn("assistant", (literal(example.word, data),)))
    return Template((*system, *turns, *asked))
