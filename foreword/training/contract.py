"""Define what a method is: it either gives the one loop a `Learner` to train, or makes its result itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from foreword.core.artefact import Artefact
from foreword.core.doc import Doc, documented
from foreword.core.format import Answers, Format
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.errors import ConfigError
from foreword.inference.features import EncodedRows
from foreword.models.base import FrozenLM, Kind
from foreword.tasks.task import Task
from foreword.training.options import Amount, Count, Positive, Whole


@documented
@dataclass(frozen=True)
class GradientConfig:
    """Hold the options of every method that trains by gradient. Rates and schedules count optimiser steps."""

    learning_rate: Annotated[Positive, Doc("Learning rate of the optimiser, at the height of its schedule.")] = 1e-3
    optimizer: Annotated[Literal["adamw", "adafactor", "sgd"], Doc("Optimiser of the learnt parameters.")] = "adamw"
    steps: Annotated[Count, Doc("Number of optimiser steps.")] = 300
    batch_size: Annotated[Count, Doc("Rows in one optimiser step, whether or not it is accumulated.")] = 32
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], Doc("How the learning rate falls to 0 after the warm-up, if it does.")
    ] = "constant"
    warmup: Annotated[Whole, Doc("Steps in which the learning rate grows linearly from 0.")] = 0
    weight_decay: Annotated[Amount, Doc("Weight decay of the optimiser.")] = 0.0
    clip: Annotated[Amount, Doc("Largest norm of a gradient; longer ones are scaled down to it (0: no limit).")] = 1.0
    eval_every: Annotated[
        Count, Doc("Steps between two evaluations on the validation rows; for text, the likelihood of all references.")
    ] = 50
    patience: Annotated[
        Whole, Doc("Evaluations in a row without a better score after which training stops (0: never).")
    ] = 0
    keep: Annotated[
        Literal["best", "last"], Doc("Which step is kept: the one with the best validation score, or the last one.")
    ] = "best"
    tokens_per_batch: Annotated[
        Count | None,
        Doc("Most tokens in one forward pass; longer steps accumulate (none: what the device holds)."),
    ] = None
    checkpointing: Annotated[
        bool, Doc("Recompute activations in the backward pass, which takes less memory and more time.")
    ] = False


@dataclass(frozen=True)
class Job:
    """Describe one artefact to make: a task put in a format, a method with its config, and a seed.

    If episodes are drawn from several tasks, `family` holds them and `task` holds all their rows. `init` is the
    artefact that training starts from, if there is one. `encoded_rows` keeps the rows as tokens while the job runs.
    """

    task: Task
    format: Format
    method: "Method"
    config: Any
    seed: int = 0
    name: str = ""
    family: tuple[Task, ...] = ()
    init: Artefact | None = None
    encoded_rows: EncodedRows = field(default_factory=EncodedRows, compare=False, repr=False)


class OwnStep(ABC):
    """Compute a learner's gradient if it is not that of a mean loss over rows, such as a step over episodes."""

    rows: int  # that a step reads, for progress

    @abstractmethod
    def gradients(self, leaves: Mapping[str, Tensor], step: int) -> float:
        """Leave the gradient of step `step` (from 0) in the leaves and return its loss; remember nothing else."""

    @abstractmethod
    def measure(self, leaves: Mapping[str, Tensor]) -> tuple[float, float] | None:
        """Return accuracy and minus the mean negative log-likelihood on validation episodes; None without any."""

    @abstractmethod
    def record(self, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what the artefact's recipe records besides the options."""


@dataclass(frozen=True, eq=False)
class Learner:
    """Hold what the loop trains: fp32 leaf tensors, and how they become what the model reads.

    `build` runs once a step, however many rows the step has. `fold` makes the value that is saved; by default, `build`
    does. `lm` is the model to train through if it is not the job's own. `dropout` says whether the model's dropout is
    on during training. If `own` is set, the gradient comes from there. `shares` scale the gradients of a leaf, for
    step sizes of single positions.
    """

    leaves: dict[str, Tensor]
    build: Callable[[Mapping[str, Tensor]], Learnt]
    format: Format
    config: GradientConfig
    fold: Callable[[Mapping[str, Tensor]], Learnt] | None = None
    lm: FrozenLM | None = None
    dropout: bool = False
    own: OwnStep | None = None
    shares: Mapping[str, Tensor] = field(default_factory=dict)

    def saved(self, leaves: Mapping[str, Tensor]) -> Learnt:
        """Return the value that an artefact keeps of these leaves."""
        return (self.fold or self.build)(leaves)


class Method(ABC):
    """Make artefacts in one way. Final subclasses hold no state; capabilities are class-level.

    A method works with the `kinds` of model and the `answers` of task that it lists. `learns` says whether training
    rows change what it makes of a rule. `resumes` says whether it leaves a state from which a killed run resumes.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type]
    form: ClassVar[str]
    gradient: ClassVar[bool]
    resumes: ClassVar[bool]
    mixed_batch: ClassVar[bool]
    freezes_lm: ClassVar[bool]
    episodes: ClassVar[bool] = False
    takes_init: ClassVar[str | None] = None  # the form of an artefact that training may start from
    adapts: ClassVar[bool] = False  # its leaves are the prompt itself: a start of metaprompting adapts as it learnt to
    uses_lm: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("masked", "causal")
    answers: ClassVar[tuple[Answers, ...]] = ("labels", "options")
    demonstrates: ClassVar[bool] = False  # shows rows to the model, in the template's {demos}
    retemplates: ClassVar[bool] = False  # its words can be put into another template, to see how much hangs on it

    def require_answers(self, task: Task) -> None:
        """Raise a ConfigError if the method does not work with such answers."""
        if task.answers not in self.answers:
            has = {"labels": "labels", "options": "options in each row", "text": "answers in text"}
            raise ConfigError(
                f"{self.name} needs {' or '.join(has[a] for a in self.answers)}, and {task.name} has "
                f"{has[task.answers]}; choose another method (`foreword methods` says what each can do)."
            )

    def require(self, kind: Kind, task: Task) -> None:
        """Raise a ConfigError if the method does not work with such a model or such answers."""
        self.require_answers(task)
        if kind not in self.kinds:
            raise ConfigError(
                f"{self.name} needs a {' or '.join(self.kinds)} model, and this one is {kind}; "
                + (
                    f"load it with --kind {self.kinds[0]} if it has such a head, or choose another method."
                    if kind != "seq2seq"
                    else "choose another method (`foreword methods` says what each can do), or another model."
                )
            )
        if task.answers == "text" and kind == "masked":
            raise ConfigError(
                f"The answers of {task.name} are texts, and a masked model cannot write; use a causal model, or this "
                "one with --kind causal if it has such a head."
            )


class GradientMethod(Method):
    """Give the one loop a `Learner` to train."""

    gradient = True
    resumes = True

    @abstractmethod
    def start(self, lm: FrozenLM, job: Job) -> Learner:
        """Return leaves drawn from the job's seed, and the format in which the model reads the learner's rows."""


CALL = "call "  # in front of the name under which the tokens of a remote call are kept


class SearchState(ABC):
    """Keep the named results of a search, so that a killed search resumes, and report its progress.

    Every result that cost something is put before it is used. With the same results, a search takes the same next step.
    """

    @abstractmethod
    def get(self, name: str) -> Any:
        """Return the result of this name, or None if there is none yet."""

    @abstractmethod
    def put(self, results: Mapping[str, Any]) -> None:
        """Keep results (as JSON) in one write; a result of the same name is replaced."""

    @abstractmethod
    def names(self, prefix: str) -> Sequence[str]:
        """Return the names that begin so, in the order in which they were first put."""

    @abstractmethod
    def begin(self, step: int = 0) -> None:
        """Start the clock of the progress at this step."""

    @abstractmethod
    def report(self, step: int, steps: int, loss: float, rows: int) -> None:
        """Report a step, and how many rows the search has read so far."""

    @property
    def spent(self) -> int:
        """Return the tokens of all remote calls: those used, and those reserved for a call that was never answered."""
        return sum(self.get(name) for name in self.names(CALL))

    @property
    def calls(self) -> int:
        """Return the number of remote calls that were begun."""
        return len(self.names(CALL))

    def reserve(self, call: str, tokens: int) -> None:
        """Keep, before a remote call is made, the most tokens that it can use."""
        self.put({CALL + call: tokens})

    def settle(self, call: str, tokens: int, results: Mapping[str, Any] | None = None) -> None:
        """Keep how many tokens a remote call used after all, with its results in the same write."""
        self.put({CALL + call: tokens, **(results or {})})


@dataclass(frozen=True, eq=False)
class Made:
    """Hold what a method made: a value, the format to use it in, and what the artefact records of the way.

    `parameters` is the number of parameters that were trained, or of tokens that were chosen by gradient.
    """

    value: Learnt
    format: Format
    parameters: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    trace: Mapping[str, Any] = field(default_factory=dict)


class DirectMethod(Method):
    """Make a result with a procedure of its own: a search, or a few lines of arithmetic."""

    gradient = False
    resumes = False

    @abstractmethod
    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        """Return what was made. A method that `resumes` goes on from what the state holds.

        If the method's config is a `HardConfig`, the trainer calibrates the scores afterwards.
        """


@dataclass(frozen=True)
class Step:
    """Describe progress after a step of a learner or a search, and after every evaluation (`metric`)."""

    job: int
    name: str
    step: int
    steps: int
    loss: float
    metric: float | None
    examples_per_second: float
    seconds_left: float


Progress = Callable[[Step], None]
