"""The contract of a method: `start(lm, job)` gives a learner, and the one loop turns learners into artefacts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from foreword.core.artefact import Artefact
from foreword.core.format import Answers, Format
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.errors import ConfigError
from foreword.inference.features import EncodedRows
from foreword.models.base import FrozenLM, Kind
from foreword.tasks.task import Task
from foreword.training.answer_log import Ledger
from foreword.training.options import Amount, Count, Positive, Whole


@dataclass(frozen=True)
class GradientConfig:
    """What every method with a gradient shares. A schedule counts optimiser steps.

    `batch_size` rows make one step whatever the accumulation; `tokens_per_batch` bounds one forward pass (longer steps
    are accumulated; None: what suits the device). Every `eval_every` steps the development rows are scored; after
    `patience` evaluations without a better score the learner stops (0: never), and its best step is kept when `keep` is
    "best". Where answers are texts, the score is the likelihood of all their references, per piece.
    """

    learning_rate: Positive = 1e-3
    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    steps: Count = 300
    batch_size: Count = 32
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Whole = 0
    weight_decay: Amount = 0.0
    clip: Amount = 1.0
    eval_every: Count = 50
    patience: Whole = 0
    keep: Literal["best", "last"] = "best"
    tokens_per_batch: Count | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class Job:
    """Describe one artefact to make: a task put in a format, a method with its config, and a seed.

    `family` are the tasks that episodes are drawn from if they are several, and `task` is then all their rows. `init`
    is the artefact that training starts from, if any. `encoded_rows` keeps the task's rows as tokens while the
    job runs.
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
    """The gradient of a learner that is not that of a mean loss over rows: a step over episodes, say."""

    rows: int  # that a step reads, for progress

    @abstractmethod
    def gradients(self, leaves: Mapping[str, Tensor], step: int) -> float:
        """Leave the gradient of step `step` (from 0) in the leaves, and give its loss; nothing else is remembered."""

    @abstractmethod
    def measure(self, leaves: Mapping[str, Tensor]) -> tuple[float, float] | None:
        """Accuracy and minus the mean negative log-likelihood on development problems; None where there are none."""

    @abstractmethod
    def record(self, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the artefact's recipe says beside the options."""


@dataclass(frozen=True, eq=False)
class Learner:
    """What the loop trains: fp32 leaf tensors, and how they become what the model is given.

    `build` runs once a step, however many rows the step has. `fold` makes the value that is saved (what `build` gives,
    unless said otherwise). `lm` is the model to train through where it is not the job's own, and `dropout` says whether
    the model's dropout is on while training. Where it has steps of its `own`, its gradient comes from there. `shares`
    multiply gradients by leaf: step sizes of single positions.
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
        """What an artefact keeps of these leaves."""
        return (self.fold or self.build)(leaves)


class Method(ABC):
    """A way to make an artefact. Final subclasses hold no state; capabilities are class-level.

    `kinds` of model and `answers` of task are those it works with. `learns` says whether training rows change what it
    makes of a rule.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type]
    form: ClassVar[str]
    gradient: ClassVar[bool]
    mixed_batch: ClassVar[bool]
    freezes_lm: ClassVar[bool]
    episodes: ClassVar[bool] = False
    takes_init: ClassVar[str | None] = None  # the form of an artefact that training may start from
    adapts: ClassVar[bool] = False  # its leaves are the prompt itself: a start of metaprompting adapts as it learnt to
    uses_lm: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    searches: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("masked", "causal")
    answers: ClassVar[tuple[Answers, ...]] = ("labels", "options")
    demonstrates: ClassVar[bool] = False  # shows rows to the model, in the template's {demos}
    retemplates: ClassVar[bool] = False  # its words can be put into another template, to see how much hangs on it

    def require_answers(self, task: Task) -> None:
        """Raise a ConfigError where the method does not work with such answers."""
        if task.answers not in self.answers:
            has = {"labels": "labels", "options": "options in each row", "text": "answers in text"}
            raise ConfigError(
                f"{self.name} needs {' or '.join(has[a] for a in self.answers)}, and {task.name} has "
                f"{has[task.answers]}; choose another method (`foreword methods` says what each can do)."
            )

    def require(self, kind: Kind, task: Task) -> None:
        """Raise a ConfigError where the method does not work with such a model or such answers."""
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


Notes = dict[str, Any]
Found = tuple[Learnt, Format, int] | tuple[Learnt, Format, int, Notes]


class GradientMethod(Method):
    """A method that the one loop trains."""

    gradient = True

    @abstractmethod
    def start(self, lm: FrozenLM, job: Job) -> Learner:
        """Leaves drawn from the job's seed, and the format in which the learner's rows are put to the model."""


class DirectMethod(Method):
    """A method with a short procedure of its own and no gradient through the model."""

    gradient = False

    @abstractmethod
    def learn(self, lm: FrozenLM, job: Job) -> Found:
        """What was learnt, the format to use it in, how many numbers were trained, and what else the record tells.

        Scores of words are calibrated afterwards, where the method's config is a `HardConfig`.
        """


class SearchMethod(Method):
    """A method that chooses words under a budget of evaluations; nothing is trained."""

    gradient = False
    mixed_batch = False
    freezes_lm = True
    searches = True

    @abstractmethod
    def search(
        self, lm: FrozenLM, job: Job, ledger: Ledger, progress: "Progress | None"
    ) -> tuple[Learnt, Format, int, dict[str, Any]]:
        """What was found, the format to use it in, 0 (numbers trained), and what the record tells of the way.

        Every answer that cost something goes into the ledger before it is used, so that a killed search goes on without
        asking again.
        """


@dataclass(frozen=True, eq=False)
class Ended:
    """What a search ends with: a value, the format to use it in, how many numbers (or tokens) were chosen, what there
    is to report, and the trace of its steps."""

    value: Learnt
    format: Format
    numbers: int
    metrics: dict[str, Any] = field(default_factory=dict)
    trace: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Learnt, Format, int, dict[str, Any]]:
        """All but the trace, as other methods give them."""
        return self.value, self.format, self.numbers, self.metrics


class Notebook(ABC):
    """Where a search keeps its state, so that a killed one goes on, and tells how far it is."""

    @abstractmethod
    def kept(self) -> dict[str, Any] | None:
        """The state to go on from, or None to begin."""

    @abstractmethod
    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep a state, whole or not at all."""

    @abstractmethod
    def tell(self, step: int, steps: int, loss: float, rows: int) -> None:
        """Report a step, and how many rows it has read so far."""


class StepwiseMethod(Method):
    """A method that searches step by step with a loop of its own; the same state gives the same next step."""

    gradient = False

    @abstractmethod
    def search(self, lm: FrozenLM, job: Job, notebook: Notebook) -> Ended:
        """Go on from the notebook's state to the end."""


@dataclass(frozen=True)
class Step:
    """What a progress listener is told: after every step of a learner, and after every evaluation (`metric`)."""

    job: int
    name: str
    step: int
    steps: int
    loss: float
    metric: float | None
    examples_per_second: float
    seconds_left: float


Progress = Callable[[Step], None]
