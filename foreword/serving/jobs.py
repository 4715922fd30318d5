"""Hold the engine's work: requests to be read, rows to be labelled, texts being continued; and limit how much it holds.

Jobs that wait have `by`, `cost` and `ended`, by which the keys that wait take turns (`fair_queue.py`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch

from foreword.core.shapes import Float, Tensor
from foreword.errors import ForewordError, ModelError
from foreword.models.decoding import Chooser, IncrementalText
from foreword.models.encoding.encoder import Encoded
from foreword.models.encoding.label_layout import Parts
from foreword.serving.bank import WORK, Entry
from foreword.serving.protocol import Delta, Generated, Judged, Piece, Sampling


@final
@dataclass(frozen=True)
class Room:
    """Limit how much an engine holds. Sizes in bytes: prompts in memory, compiled prompts, and the cache of generation.

    `rows` texts are generated at once; `waiting` rows may wait before more are refused. The rows of one request may
    have `work` tokens in all, those of the label words that are read with each row among them.
    """

    memory: int = 2**30
    compiled: int = 2**30
    cache: int = 2**31
    rows: int = 32
    waiting: int = 4096
    work: int = WORK


@final
@dataclass(eq=False)
class Judging:
    """Collect the answers to one request's rows to be labelled; the answer is whole or an error."""

    result: Future[list[Judged]]
    found: list[Judged | None]
    left: int
    by: str = ""


@final
@dataclass(frozen=True, eq=False)
class Labelling:
    """Hold one row to be labelled, for the `index`-th place of its request.

    If `parts` is set, its label words are read in parts; `words` has the scores of each part that was read.
    """

    of: Judging
    index: int
    entry: Entry
    row: Encoded
    names: tuple[str, ...]
    parts: Parts | None = None
    words: dict[int, Float[Tensor, "W"]] = field(default_factory=dict)

    def units(self) -> "list[Unit]":
        """Return the units to be read, each within what one pass may take."""
        if self.parts is None:
            return [Unit(self, 0, self.row)]
        return [Unit(self, n, replace(self.row, plan=plan)) for n, plan in enumerate(self.parts.plans)]


@final
@dataclass(frozen=True, eq=False)
class Unit:
    """Hold a row with all of its label words, or with the `part`-th part of them."""

    job: Labelling
    part: int
    row: Encoded

    @property
    def by(self) -> str:
        return self.job.of.by

    @property
    def cost(self) -> float:
        return float(self.row.cost)

    @property
    def ended(self) -> bool:
        return self.job.of.result.done()


@final
@dataclass(eq=False)
class TextJob:
    """Hold one text under way, as its ticket: cancelling the result gives its place to the next.

    `spans` are the columns of the row whose pieces are to be shown, with the text of each; `prompt` has these pieces.
    """

    result: Future[Generated]
    sampling: Sampling
    on_delta: Callable[[Delta], None] | None
    by: str = ""
    entry: Entry | None = None
    row: Encoded | None = None
    chooser: Chooser | None = None
    writer: IncrementalText | None = None
    last: int = -1
    pieces: list[Piece] = field(default_factory=list)
    spans: Sequence[tuple[int, str]] = ()
    prompt: tuple[Piece, ...] = ()

    @property
    def cost(self) -> float:
        """Return the number of tokens to be read and at most to be generated."""
        return float(self.sampling.max_tokens + (0 if self.row is None else len(self.row.ids_S)))

    @property
    def ended(self) -> bool:
        return self.result.done()

    def cancel(self) -> None:
        self.result.cancel()


@final
@dataclass(frozen=True, eq=False)
class EncodingJob:
    """Hold a request whose prompts are to be read and whose texts are to be tokenised; `cost` is in characters."""

    result: Future[Any]
    by: str
    cost: float
    work: Callable[[], None]

    @property
    def ended(self) -> bool:
        return self.result.done()


def columns(entry: Entry | None, row: Encoded) -> int:
    """Return the number of positions that a row takes of the context, its prompt included."""
    return len(row.ids_S) + (0 if entry is None else entry.value.text_start)


def settle(result: Future[Any], value: Any) -> None:
    with suppress(Exception):  # cancelled meanwhile
        result.set_result(value)


def fail(result: Future[Any], error: BaseException) -> None:
    if not isinstance(error, ForewordError):
        error = ModelError(f"The model failed on this row ({type(error).__name__}: {error}).")
    with suppress(Exception):
        result.set_exception(error)


def is_fatal(error: BaseException) -> bool:
    """Return whether nothing can be computed any more after this error: an accelerator has lost its context.

    Running out of memory is no such error, since other rows may need less.
    """
    lost = isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
    return lost and "out of memory" not in str(error)
