"""Define what the engine is asked to do and what it answers: plain values, no tensors, so that any front may use it."""

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
    """Report that the engine has as much work as it may hold; `retry_after` seconds from now there is room again."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class Stopped(Busy):
    """Report that the engine takes no more work: it stops, or has failed, and another process has to take its place."""


@dataclass(frozen=True)
class Client:
    """Identify a client: an id by which keys take turns, and how many of its rows may wait (None: as many as there is
    room for).

    The empty id is that of all clients without a key.
    """

    id: str = ""
    rows: int | None = None


ANYBODY = Client()


@dataclass(frozen=True)
class Piece:
    """Hold one piece of text with its log-probability, and the likeliest ones if they were asked for.

    The first piece of a prompt has no log-probability.
    """

    text: str
    logprob: float | None
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """Hold what generation adds: text that will not change any more, its pieces, and why the generation ended.

    `prompt` has the pieces of the text that was given, once, before all that is new.
    """

    text: str
    pieces: tuple[Piece, ...] = ()
    finish: Finish | None = None
    prompt: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Generated:
    """Hold a whole continuation. `prompt_tokens` counts the columns of the row, those of its learnt prompt included.

    `prompt` has the pieces of the text that was given, if they were asked for.
    """

    text: str
    pieces: tuple[Piece, ...]
    finish: Finish
    prompt_tokens: int
    cut: int = 0
    prompt: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Judged:
    """Hold a row's likeliest label and the probability of each; `cut` counts the pieces that truncation took."""

    label: str
    probabilities: dict[str, float]
    prompt_tokens: int
    cut: int = 0


@dataclass(frozen=True)
class RowRequest:
    """Hold a row to read with a prompt: its fields by name, or one text for a template with one field, or chat
    messages.

    With `version` None the model alone reads the text as it is. `options` are the labels of this row, if the artefact
    has none. `where` names the row in errors. With `echo` a generation begins with the pieces of the text itself, if
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
    """Count what the engine holds. Rows wait, or are being generated; prompts are in memory, or compiled as well."""

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
    """Hold a generation under way. `result` raises its error; `cancel` gives its place to the next."""

    @property
    def result(self) -> Future[Generated]: ...

    def cancel(self) -> None: ...


@runtime_checkable
class Works(Protocol):
    """Describe the engine as a front sees it. Every call is thread-safe and returns at once."""

    @property
    def model(self) -> str: ...

    @property
    def continues(self) -> bool:
        """Return whether texts can be continued; a masked model only labels them."""
        ...

    @property
    def ended(self) -> bool:
        """Return whether the engine has stopped, by a call of `close` or by a failure."""
        ...

    @property
    def failure(self) -> str | None:
        """Return why the engine stopped without a call of `close`, in a sentence; None if it did not."""
        ...

    @property
    def held(self) -> float:
        """Return the seconds since the engine last made progress while work waits; 0 if it makes progress, or nothing
        waits."""
        ...

    def classify(self, rows: Sequence[RowRequest], by: Client = ANYBODY) -> Future[list[Judged]]:
        """Label rows, each with its own prompt; return their future. Raises: Busy; the future: ForewordError that says
        what is wrong."""
        ...

    def generate(
        self, row: RowRequest, sampling: Sampling, on_delta: Callable[[Delta], None] | None = None, by: Client = ANYBODY
    ) -> Ticket:
        """Generate text after a row and return its ticket. `on_delta` is called on the engine's thread. Raises:
        Busy."""
        ...

    def check(self, artefact: Artefact) -> None:
        """Check that a prompt fits this model. Raises: ArtefactError, ConfigError in one sentence."""
        ...

    def load(self) -> Load: ...

    def close(self, finish: bool = True, seconds: float = 30.0) -> None:
        """Refuse new work and stop; with `finish`, end what was accepted first, for `seconds` at most."""
        ...
