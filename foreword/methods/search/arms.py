"""Candidates of a search, and what each is worth on each row; every value is noted before it is used."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import Answer, Field, Template, Turn
from foreword.core.template import Literal as Words
from foreword.errors import ConfigError, DataError, ForewordError
from foreword.methods.base import Progress, Step
from foreword.methods.predict import encode_rows
from foreword.methods.search.halving import Cells
from foreword.methods.search.notes import Notes, key_of
from foreword.methods.stack import stacked_scores
from foreword.models.base import FrozenLM
from foreword.models.encode import Encoder
from foreword.models.pieces import Pieces
from foreword.tasks.rows import Row

Score = Literal["likelihood", "metric"]
CHUNK = 128  # rows read between two notes
NONE = HardPrompt(torch.zeros(0, dtype=torch.long))


@final
@dataclass(frozen=True)
class Arm:
    """A candidate: its words ("" for the template as written), where they are from, and the format that has them."""

    text: str
    source: str
    format: Format


def with_instruction(form: Format, instruction: str, kind: str, frame: str = "template") -> Format:
    """The format with an instruction: in front of its own template, or in the frame of Zhou et al. 2022.

    Raises: ConfigError for a template with slots, or a chat in the paper's frame.
    """
    template = form.template
    if template.slots:
        raise ConfigError("A search for words needs a template without {soft:...} slots; remove them.")
    if frame == "paper":
        if template.chat:
            raise ConfigError("frame=paper is one text, and this template is a list of messages; use frame=template.")
        fields = [p for p in template.parts if isinstance(p, Field)]
        several = len(fields) > 1
        parts: list[Any] = [Words(f"Instruction: {instruction}\n")] if instruction else []
        for field in fields:
            parts += [Words(f"{field.name.replace('_', ' ').capitalize()}: " if several else "Input: "), field]
            parts.append(Words("\n"))
        parts += [Words("Output: "), template.answer or Answer("mask" if kind == "masked" else "answer")]
        return replace(form, template=Template((Turn("", _joined(parts)),)))
    if not instruction:
        return form
    first = template.turns[0]
    space = "\n\n" if template.chat else "\n" if kind == "causal" else " "
    turn = Turn(first.role, _joined([Words(instruction + space), *first.parts]))
    return replace(form, template=Template((turn, *template.turns[1:])))


def _joined(parts: Sequence[Any]) -> tuple[Any, ...]:
    """Neighbouring literals as one, as parsing the source gives them."""
    found: list[Any] = []
    for part in parts:
        if isinstance(part, Words) and found and isinstance(found[-1], Words):
            found[-1] = Words(found[-1].text + part.text)
        else:
            found.append(part)
    return tuple(found)


def usable(lm: FrozenLM, text: str, form: Format) -> bool:
    """Whether the candidate's words are plain text to the tokenizer and its template leaves room for a row."""
    if any(isinstance(p, int) for p in Pieces.of(lm.tokenizer, lm.kind).split_special(text)):
        return False  # a proposal must not write special tokens into a template
    try:
        encoder = Encoder.build(lm, form)
    except ForewordError:
        return False
    return 2 * encoder.own <= encoder.room


@final
class Pool:
    """Candidates without repetition, in the order in which they came."""

    def __init__(self, lm: FrozenLM, build: Callable[[str], Format]) -> None:
        self._lm, self._build = lm, build
        self._seen: set[str] = set()
        self.arms: list[Arm] = []
        self.refused = 0

    def add_as_written(self) -> None:
        """The template as the person wrote it, whatever its length: what is found must beat it."""
        self._seen.add("")
        self.arms.append(Arm("", "as written", self._build("")))

    def add(self, text: str, source: str) -> bool:
        """Whether the candidate is new and usable, and so was added."""
        key = " ".join(text.lower().split()).rstrip(".")
        if key in self._seen:
            return False
        self._seen.add(key)
        form = self._build(text)
        if not usable(self._lm, text, form):
            self.refused += 1
            return False
        self.arms.append(Arm(text, source, form))
        return True


@final
class Reader:
    """What candidates are worth on the selection rows: a log-probability of the right answer, or the metric.

    Calling it gives values for the cells of a search over `arms`; `read` counts the evaluations.
    """

    def __init__(self, lm: FrozenLM, rows: Sequence[Row], score: Score, notes: Notes) -> None:
        for row in rows:
            if row.label is None:
                raise DataError(f"{row.where} has no label; a search needs one in every row that it chooses on.")
        self._lm, self._rows, self._score, self._notes = lm, rows, score, notes
        self.read = 0
        self._tell: Callable[[int], None] | None = None

    def told(self, name: str, total: int, progress: Progress | None) -> None:
        """Tell `progress` of every chunk from now on."""
        if progress is None:
            return
        began = time.monotonic()

        def tell(read: int) -> None:
            seconds = max(1e-9, time.monotonic() - began)
            left = max(0, total - read) * seconds / max(1, read)
            progress(Step(0, name, min(read, total), total, 0.0, None, read / seconds, left))

        self._tell = tell

    def values(self, arms: Sequence[Arm], cells: Cells, score: Score | None = None) -> list[list[float]]:
        """A value for each row of each cell, by this reader's score unless another is asked for."""
        index = 1 if (score or self._score) == "metric" else 0
        found = [self._chunk(arms, chunk) for chunk in _chunks(cells)]
        return [[pair[index] for pair in pairs] for part in found for pairs in part]

    def _chunk(self, arms: Sequence[Arm], cells: Cells) -> list[list[list[float]]]:
        """(log-probability, right or wrong) of each row of each cell. A chunk is noted whole and read whole, so that
        one read again after a kill has the same company, and so the same last digits."""
        keys = [[self._key(arms[arm], self._rows[row]) for row in rows] for arm, rows in cells]
        known = [[self._notes.get(key) for key in some] for some in keys]
        if any(value is None for some in known for value in some):
            encoded = [encode_rows(self._lm, arms[arm].format, [self._rows[r] for r in rows]) for arm, rows in cells]
            scores = stacked_scores(self._lm, [NONE] * len(cells), encoded)
            known = [
                [_measured(score_C, self._rows[row]) for score_C, row in zip(score_NC, rows, strict=True)]
                for score_NC, (_, rows) in zip(scores, cells, strict=True)
            ]
            self._notes.put({k: v for ks, vs in zip(keys, known, strict=True) for k, v in zip(ks, vs, strict=True)})
        self.read += sum(len(rows) for _, rows in cells)
        if self._tell:
            self._tell(self.read)
        return known

    def _key(self, arm: Arm, row: Row) -> str:
        return key_of("score", arm.format.to_json(), row.text(), row.label)


def _measured(score_C: torch.Tensor, row: Row) -> list[float]:
    logprob_C = score_C.double().log_softmax(-1)
    assert row.label is not None, "checked when the reader was made"
    return [float(logprob_C[row.label]), float(int(logprob_C.argmax()) == row.label)]


def _chunks(cells: Cells) -> list[list[tuple[int, range]]]:
    """Cells in parts of at most CHUNK rows; one with more is a part of its own."""
    parts: list[list[tuple[int, range]]] = []
    size = 0
    for arm, rows in cells:
        if not parts or size + len(rows) > CHUNK:
            parts.append([])
            size = 0
        parts[-1].append((arm, rows))
        size += len(rows)
    return parts

