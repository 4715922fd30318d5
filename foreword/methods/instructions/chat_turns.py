"""Fill in words in the user's turn of a chat, by a model that reads the whole chat before them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foreword.core.format import Format
from foreword.core.template import AnswerPlace, Field, Literal, Part, Soft, Template, Turn, joined
from foreword.methods.instructions.infill import WIDEST, Filling, beam_search, spaced, words_of
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder, PlainRow
from foreword.training.answer_log import key_of
from foreword.training.contract import SearchState


def asked_turn(template: Template) -> int:
    """Return the number of the turn that is searched: the last one that is not the assistant's."""
    return max((i for i, turn in enumerate(template.turns) if turn.role != "assistant"), default=0)


def content_of(template: Template) -> str:
    """Return the searched turn's text as a template of its own."""
    source = template.source
    assert not isinstance(source, str), "a chat is a list of messages"
    return source[asked_turn(template)]["content"]


def with_content(template: Template, content: str) -> Template:
    """Return the chat with another text in the searched turn."""
    source = template.source
    assert not isinstance(source, str), "a chat is a list of messages"
    source[asked_turn(template)]["content"] = content
    return Template.parse(source)


def places(template: Template) -> list[Template]:
    """Return the chat as it is, and, as Gao et al. 2021 do, with nothing but its fields in the searched turn.

    Words are filled in at the end of that turn. The second is left out if fields stand in other turns too.
    """
    at = asked_turn(template)
    turn = template.turns[at]
    fields = [part for part in turn.parts if isinstance(part, Field)]
    others = [part for i, other in enumerate(template.turns) if i != at for part in other.parts]
    if not fields or any(isinstance(part, Field) for part in others):
        return [template]
    bare: list[Part] = []
    for field in fields:
        bare += [*([Literal("\n")] if bare else []), field]
    return [template, _with_turn(template, at, bare)]


def fill_turn(
    lm: FrozenLM, form: Format, examples: Sequence[dict[str, str]], length: int, beam: int, state: SearchState, who: str
) -> list[str]:
    """Return the searched turn with the likeliest `length` tokens at its end, best first, as texts of the turn.

    Raises: ConfigError, ModelError as `Encoder.build` says, DataError for an example that has no room.
    """
    template = form.template
    at = asked_turn(template)
    key = key_of("infill", who, template.source, length, list(examples), beam)
    words = state.get(key)
    if words is None:
        open_ = _with_turn(template, at, (*template.turns[at].parts, Soft(length=length)))
        encoder = Encoder.build(lm, replace(form.without_labels(), template=open_))
        lines = [PlainRow({name: text[:WIDEST] for name, text in fields.items()}) for fields in examples]
        before = [e.ids_S[: int(np.flatnonzero(e.slot_S >= 0)[0])].tolist() for e in encoder.encode_rows(lines)]

        def rows(ids: Sequence[int]) -> list[tuple[list[int], int]]:
            return [([*row, *ids], len(row) + len(ids) - 1) for row in before]

        words = [words_of(lm, ids) for ids, _ in beam_search(lm, rows, length, beam)]
        state.put({key: words})
    parts = template.turns[at].parts
    return [content_of(_with_turn(template, at, (*parts, Literal(spaced(text))))) for text in words if text]


def turn_of(filling: Filling) -> str:
    """Return a filling of plain text as a user's turn: without the place of its answer, which the chat has itself."""
    parts = [part for part in filling.template("causal").parts if not isinstance(part, AnswerPlace)]
    source = Template((Turn("", tuple(parts)),)).source
    assert isinstance(source, str), "a filling is one string"
    return source.rstrip()


def _with_turn(template: Template, at: int, parts: Sequence[Part]) -> Template:
    turns = list(template.turns)
    turns[at] = Turn(turns[at].role, joined(parts))
    return Template(tuple(turns))
