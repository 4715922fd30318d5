"""Write tokens as words and read them back in full context: only text that is read as the same tokens is scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from foreword.core.format import Format
from foreword.core.template import Field, Literal, Part, Soft, Template, Turn
from foreword.errors import ForewordError
from foreword.methods.triggers.prompt_slots import Prompt, Slotted, columns_of, replaced, spans, worded
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded
from foreword.models.encoding.encoder import Encoder, PlainRow, TextRow

CONTEXT = "a"  # decoded before every text, so that a leading space is seen whatever the decoder does with a first word
PROBES = 4


@final
@dataclass(frozen=True, eq=False)
class Detokeniser:
    """Write prompts as words in the template, and tell which are read back as the tokens they came from.

    The words stand in for fields of `holed`, so that one encoder reads all of them in the full text of `probes`, rows
    whose texts begin and end in different kinds of character.
    """

    lm: FrozenLM
    slotted: Slotted
    holed: Encoder
    spans: tuple[range, ...]
    probes: tuple[TextRow, ...]
    open: tuple[Encoded, ...]  # the probes with open slots
    apart: tuple[bool, ...]  # for each gap, whether a letter right at its start would join the text of a field

    @staticmethod
    def build(
        lm: FrozenLM, slotted: Slotted, rows: Sequence[TextRow], encoded: Sequence[Encoded], surfaces: Sequence[str]
    ) -> "Detokeniser":
        """Build it from the rows and `encoded`, the same rows with open slots.

        The `surfaces` of the tokens in use say whether words bring a space.
        """
        holed = Encoder.build(lm, replace(slotted.format, template=_holed(slotted.format.template)))
        kinds: dict[str, int] = {}
        for index, (row, e) in enumerate(zip(rows, encoded, strict=True)):
            if not e.cut:
                kinds.setdefault("".join(_kind(text) for text in row.fields.values()), index)
        chosen = list(kinds.values())[:PROBES] or [0][: len(rows)]
        parts = tuple(spans(slotted.encoder))
        spaced = any(surface.startswith(" ") for surface in surfaces)
        apart = tuple(spaced and after for after in _after_field(slotted.format.template))
        probes, opened = tuple(rows[i] for i in chosen), tuple(encoded[i] for i in chosen)
        return Detokeniser(lm, slotted, holed, parts, probes, opened, apart)

    def texts(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...] | None]:
        """Return the words for each prompt's slots; None if no way to write them is read back as these tokens."""
        surfaces = self._surfaces(prompts)
        results: list[tuple[str, ...] | None] = [None] * len(prompts)
        bare = [tuple(text.lstrip(" ") for text in texts) for texts in surfaces]
        for variant in (surfaces, bare):  # without its first space where the prompt begins a row
            asked = [i for i in range(len(prompts)) if results[i] is None and self._stands(variant[i])]
            read = self._read_back([prompts[i] for i in asked], [variant[i] for i in asked])
            for i, good in zip(asked, read, strict=True):
                if good:
                    results[i] = variant[i]
        return results

    def format(self, texts: tuple[str, ...]) -> Format:
        """Return the format with these words in its text."""
        form = self.slotted.format
        return replace(form, template=worded(form.template, texts))

    def _stands(self, texts: tuple[str, ...]) -> bool:
        """Return whether every slot has words, and none of them join a field's text.

        Which tokens those would become together differs from row to row.
        """
        return all(
            text.strip() and not (apart and text[0].isalnum()) for text, apart in zip(texts, self.apart, strict=True)
        )

    def _surfaces(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
        tokenizer = self.lm.tokenizer
        context = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
        before = len(tokenizer.decode(context, clean_up_tokenization_spaces=False))
        flat = [[*context, *(prompt[i] for i in span)] for prompt in prompts for span in self.spans]
        decoded = iter(tokenizer.batch_decode(flat, clean_up_tokenization_spaces=False))
        return [tuple(next(decoded)[before:] for _ in self.spans) for _ in prompts]

    def _read_back(self, prompts: Sequence[Prompt], texts: Sequence[tuple[str, ...]]) -> list[bool]:
        lines = [
            PlainRow({**row.fields, **{_hole(n): text for n, text in enumerate(some)}}, tuple(row.options))
            for some in texts
            for row in self.probes
        ]
        try:
            read = iter(self.holed.encode_rows(lines))
        except ForewordError:  # a row that has room for the prompt's tokens, but not for what its words become
            return [False] * len(prompts)
        good = []
        for prompt in prompts:
            own = [same_columns(e, filled(e, prompt), next(read)) for e in self.open]
            good.append(all(own))
        return good


def filled(encoded: Encoded, prompt: Prompt) -> np.ndarray:
    """Return the row's ids with the prompt in its slots."""
    ids_S = encoded.ids_S.copy()
    ids_S[columns_of(encoded.slot_S, len(prompt))] = prompt
    return ids_S


def same_columns(one: Encoded, ids_S: np.ndarray, other: Encoded) -> bool:
    """Return whether a row with these ids in place of its own has the ids and the answer's column of the other one."""
    return one.answer == other.answer and np.array_equal(ids_S, other.ids_S)


def reads_alike(slotted: Sequence[Encoded], prompt: Prompt, worded: Sequence[Encoded]) -> bool:
    """Return whether rows in a format that is all words have the tokens of the rows with the prompt in their slots, and
    the same tokens as label words."""
    for e, other in zip(slotted, worded, strict=True):
        words = (e.plan.words if e.plan else None) == (other.plan.words if other.plan else None)
        if not words or not same_columns(e, filled(e, prompt), other):
            return False
    return True


def _hole(number: int) -> str:
    return f"found words {number}"


def _holed(template: Template) -> Template:
    """Return the template with a field in place of each slot."""
    turns, number = [], 0
    for turn in template.turns:
        count = sum(isinstance(part, Soft) for part in turn.parts)
        turns.append(Turn(turn.role, replaced(turn.parts, [Field(_hole(number + n)) for n in range(count)])))
        number += count
    return Template(tuple(turns))


def _after_field(template: Template) -> list[bool]:
    """Return for each slot whether a field's text stands right before it, not counting spaces."""
    results = []
    for turn in template.turns:
        before: Part | None = None
        for part in turn.parts:
            if isinstance(part, Soft):
                results.append(isinstance(before, Field))
            if not (isinstance(part, Literal) and not part.text.strip(" ")):
                before = part
    return results


def _kind(text: str) -> str:
    """Return the kinds of a text's first and last character: a letter, a digit, a space or something else."""

    def one(char: str) -> str:
        return "a" if char.isalpha() else "0" if char.isdigit() else " " if char.isspace() else "."

    return one(text[0]) + one(text[-1]) if text else "-"
