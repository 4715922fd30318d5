"""What the engine is asked to do and what it answers: plain values, no tensors, so that any front may speak to it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from foreword.core.artefact import Artefact
from foreword.errors import ForewordError
from foreword.models.decoding import Sampling
from foreword.serving.store import Version

Finish = Literal["stop", "length"]


class Busy(ForewordError):  # noqa: N818 - what it is, not what went wrong
    """The engine has as much work as it may hold; `retry_after` seconds from now there is room again."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class Stopped(Busy):
    """The engine takes nothing more: it stops, or has failed, and another process has to take its place."""


@dataclass(frozen=True)
class Client:
    """Who asks: an id that keys take turns by, and how many of its rows may wait (None: as many as there is room for).

    The empty id is that of all who ask without a key.
    """

    id: str = ""
    rows: int | None = None


ANYBODY = Client()


@dataclass(frozen=True)
class Piece:
    """One piece of text with its log-probability, and the likeliest ones where they were asked for.

    The first piece of a prompt has no log-probability.
    """

    text: str
    logprob: float | None
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What generation adds: text that will not change any more, the pieces it is made of, and why it ended.

    `prompt` has the pieces of the text that was given, once, before all that is new.
    """

    text: str
    pieces: tuple[Piece, ...] = ()
    finish: Finish | None = None
    prompt: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Generated:
    """A whole continuation. `prompt_tokens` counts the row's own columns, those of its learnt prompt included.

    `prompt` has the pieces of the text that was given, where they were asked for.
    """

    text: str
    pieces: tuple[Piece, ...]
    finish: Finish
    prompt_tokens: int
    cut: int = 0
    prompt: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A row's likeliest label and the probability of each; `cut` counts the pieces that truncation took."""

    label: str
    probabilities: dict[str, float]
    prompt_tokens: int
    cut: int = 0


@dataclass(frozen=True)
class RowRequest:
    """A row to read with a prompt: its fields by name, or one text for a template with one field, or chat messages.

    `version` None is the model alone, which reads the text as it is. `options` are a row's own labels, where the
    artefact has none. `where` names the row in errors. With `echo` a generation begins with the text's own pieces, if
    log-probabilities are asked for, and nothing new need follow.
    """

    version: Version | None
    text: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    where: str = "the input"
    echo: bool = False


@dataclass(frozen=True)
class Load:
    """How much the engine holds. Rows wait, or are being generated; prompts are in memory, or compiled as well."""

    waiting: int
    generating: int
    prompts_in_memory: int
    prompts_compiled: int
    bytes_in_memory: int
    bytes_compiled: int
    loads: int
    evictions: int
    batches: int
    rows_classified: int
    pieces_generated: int


@runtime_checkable
class Ticket(Protocol):
    """A generation under way. `result` raises what went wrong; `cancel` gives its place to the next."""

    @property
    def result(self) -> Future[Generated]: ...

    def cancel(self) -> None: ...


@runtime_checkable
class Works(Protocol):
    """The engine as a front sees it. Every call is thread-safe and returns at once."""

    @property
    def model(self) -> str: ...

    @property
    def continues(self) -> bool:
        """Return whether texts can be continued; a masked model only labels them."""
        ...

    @property
    def ended(self) -> bool:
        """Return whether it has stopped, as it was asked to or not."""
        ...

    @property
    def failure(self) -> str | None:
        """Return why the engine stopped without being asked to, in a sentence; None if it did not."""
        ...

    @property
    def held(self) -> float:
        """Return the seconds since the engine last made progress while work waits; 0 if it does, or nothing waits."""
        ...

    def classify(self, rows: Sequence[RowRequest], by: Client = ANYBODY) -> Future[list[Judged]]:
        """Return the labels of rows, each with its own prompt.

        Raises: Busy; the future: ForewordError that says what is wrong.
        """
        ...

    def generate(
        self, row: RowRequest, sampling: Sampling, on_delta: Callable[[Delta], None] | None = None, by: Client = ANYBODY
    ) -> Ticket:
        """Continue a row in text. `on_delta` is called on the engine's thread. Raises: Busy."""
        ...

    def check(self, artefact: Artefact) -> None:
        """Return whether a prompt fits this model. Raises: ArtefactError, ConfigError in one sentence."""
        ...

    def load(self) -> Load: ...

    def close(self, finish: bool = True, seconds: float = 30.0) -> None:
        """Take nothing more; with `finish`, end what was accepted first, for so long at most."""
        ...
