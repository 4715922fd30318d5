"""Fill in words between a row's texts and its answer, by beam search over all rows at once (Gao et al. 2021, 3.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from foreword.core.template import AnswerPlace, Field, Literal, Template, Turn
from foreword.methods.instructions.proposal_prompts import tidy
from foreword.methods.instructions.vocabulary import piece_logprobs
from foreword.models.base import FrozenLM
from foreword.models.encoding.tokenise import Pieces
from foreword.training.answer_log import key_of
from foreword.training.contract import SearchState

WIDEST = 200  # characters of an example's text


@final
@dataclass(frozen=True)
class Blank:
    """Mark a span to fill with `length` tokens."""

    length: int


ANSWER = AnswerPlace()
Shape = tuple[str | Blank | AnswerPlace, ...]  # names of fields, gaps, and the place of the answer


@final
@dataclass(frozen=True)
class Filling:
    """Hold words for a shape's gaps, and the sum over the examples of their log-probabilities."""

    shape: Shape
    words: tuple[str, ...]
    logprob: float

    def template(self, kind: str) -> Template:
        """Return the shape as a template with these words: single spaces between its parts, none before punctuation."""
        given = iter(self.words)
        parts: list[Field | Literal | AnswerPlace] = []
        text = ""
        first = next(p for p in self.shape if isinstance(p, str))
        for part in self.shape:
            if isinstance(part, Blank):
                word = next(given)
                text += word if text or not parts else spaced(word)
                continue
            if parts and not text.endswith(" "):
                text += " "
            elif not parts and text:
                text += " "
            if text:
                parts.append(Literal(text))
                text = ""
            if isinstance(part, AnswerPlace):
                parts.append(AnswerPlace("mask" if kind == "masked" else "answer"))
            else:
                parts.append(Field(part, part == first))
        return Template((Turn("", (*parts, *([Literal(text)] if text else []))),))


def spaced(words: str) -> str:
    """Return the words as they stand after a text: with one space before them, unless they begin with a stop."""
    return words if words[:1] in ".,:;?!" else f" {words}"


def shapes(fields: Sequence[str], kind: str, longest: int) -> list[Shape]:
    """Return the shapes that place gaps among the fields and the answer; a gap may have `longest` tokens.

    A causal model has its answer at the end; a masked one anywhere, with a gap behind it too, and between two texts.
    """
    first, *rest = fields
    lengths = range(1, longest + 1)
    tail: Shape = tuple(rest)
    if kind == "causal":
        if not rest:
            return [(first, Blank(n), ANSWER) for n in lengths]
        return [(first, Blank(m), *tail, Blank(n), ANSWER) for m in (1, 2) for n in lengths]
    if not rest:
        found: list[Shape] = [(first, Blank(n), ANSWER, Blank(m)) for n in lengths for m in (1, 2)]
        return [*found, *((Blank(n), ANSWER, Blank(1), first) for n in lengths)]
    return [(first, Blank(m), ANSWER, Blank(n), *tail) for m in (1, 2) for n in lengths]


@final
class Infiller:
    """Fill shapes from example rows: their texts by field, and the answer of each."""

    def __init__(
        self, lm: FrozenLM, examples: Sequence[tuple[dict[str, str], str]], beam: int, state: SearchState, who: str
    ) -> None:
        self._lm, self._examples, self._beam, self._state, self._who = lm, examples, beam, state, who
        self._pieces = Pieces.of(lm.tokenizer, lm.kind)

    def fill(self, shape: Shape) -> list[Filling]:
        """Return the `beam` best fillings without empty words. A causal model reads only the text before a gap."""
        key = key_of("infill", self._who, shape_key(shape), self._examples, self._beam)
        result = self._state.get(key)
        if result is None:
            result = [[self._words(shape, ids), value] for ids, value in self._search(shape)]
            self._state.put({key: result})
        return [Filling(shape, tuple(words), value) for words, value in result if all(words)]

    def _search(self, shape: Shape) -> list[tuple[list[int], float]]:
        """Search the tokens of all gaps, in order, by beam search."""
        length = sum(part.length for part in shape if isinstance(part, Blank))

        def rows(ids: Sequence[int]) -> list[tuple[list[int], int]]:
            return [self._row(shape, ids, len(ids), fields, answer) for fields, answer in self._examples]

        return beam_search(self._lm, rows, length, self._beam)

    def _row(
        self, shape: Shape, ids: Sequence[int], step: int, fields: dict[str, str], answer: str
    ) -> tuple[list[int], int]:
        """Return one example with the gaps filled up to `step`, and the column where the next token is read."""
        masked = self._lm.kind == "masked"
        row, filled, column = [*self._pieces.before], 0, -1
        for part in shape:
            if isinstance(part, Blank):
                for _ in range(part.length):
                    if filled == step:
                        column = len(row) if masked else len(row) - 1
                        if not masked:
                            return row or [int(self._lm.tokenizer.pad_token_id)], max(0, column)
                    row.append(ids[filled] if filled < step else int(self._lm.tokenizer.mask_token_id or 0))
                    filled += 1
                continue
            text = answer if isinstance(part, AnswerPlace) else fields[part][:WIDEST]
            begins = len(row) == len(self._pieces.before)
            row += self._pieces.start([text])[0] if begins else self._pieces.after(("a",), [f" {text}"])[0]
        return [*row, *self._pieces.after_row], column

    def _words(self, shape: Shape, ids: Sequence[int]) -> list[str]:
        """Return the text of each gap."""
        result, at = [], 0
        for part in shape:
            if isinstance(part, Blank):
                result.append(words_of(self._lm, ids[at : at + part.length]))
                at += part.length
        return result


def beam_search(
    lm: FrozenLM, rows: Callable[[Sequence[int]], list[tuple[list[int], int]]], length: int, beam: int
) -> list[tuple[list[int], float]]:
    """Return the `beam` likeliest fillings of `length` tokens with their summed log-probabilities over all examples.

    `rows` gives each example with a gap filled as far as it is, and the column where the next token is read.
    """
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(length):
        asked = [row for ids, _ in beams for row in rows(ids)]
        logp_XV = piece_logprobs(lm, [ids for ids, _ in asked], [column for _, column in asked])
        sum_KV = logp_XV.unflatten(0, (len(beams), len(asked) // len(beams))).sum(1)
        total_KV = sum_KV + torch.tensor([value for _, value in beams])[:, None]
        best = total_KV.flatten().topk(min(beam, total_KV.numel()))
        vocab = total_KV.shape[1]
        beams = [
            ([*beams[index // vocab][0], index % vocab], value)
            for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return beams


def words_of(lm: FrozenLM, ids: Sequence[int]) -> str:
    """Return the text of filled-in tokens, with single spaces."""
    return tidy(lm.tokenizer.decode(list(ids), skip_special_tokens=True))


def shape_key(shape: Shape) -> list[str | int]:
    return [
        part.length if isinstance(part, Blank) else "answer" if isinstance(part, AnswerPlace) else part
        for part in shape
    ]
