"""The contract of a method: `start(lm, job)` gives a learner, and the one loop turns learners into artefacts."""

import dataclasses
import difflib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from foreword.core.artefact import Artefact
from foreword.core.format import Answers, Format
from foreword.core.learnt import Learnt
from foreword.core.shapes import Tensor
from foreword.errors import ConfigError
from foreword.methods.search.ledger import Ledger
from foreword.models.base import FrozenLM, Kind
from foreword.tasks.task import Task


@dataclass(frozen=True)
class GradientConfig:
    """What every method with a gradient shares. A schedule counts optimiser steps.

    `batch_size` rows make one step whatever the accumulation; `tokens_per_batch` bounds one forward pass (longer steps
    are accumulated; None: what suits the device). Every `eval_every` steps the development rows are scored; after
    `patience` evaluations without a better score the learner stops (0: never), and its best step is kept when `keep` is
    "best". Where answers are texts, the score is the likelihood of all their references, per piece.
    """

    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    steps: int = 300
    batch_size: int = 32
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    eval_every: int = 50
    patience: int = 0
    keep: Literal["best", "last"] = "best"
    tokens_per_batch: int | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class HardConfig:
    """What every method whose prompt is words shares: how the scores are calibrated afterwards (`methods.calibrate`).

    "auto" chooses among the rules, "none" included, on development rows; `temperature` is fitted on them too.
    `content_free` texts have | between them; `premise` stands for the domain (None: the template without its fields).
    """

    calibrate: Literal["none", "contextual", "pmi", "batch", "auto"] = "none"
    temperature: bool = False
    content_free: str = "N/A||[MASK]"
    premise: str | None = None


@dataclass(frozen=True)
class Job:
    """One artefact to make: a task put in a format, a method with its config, and a seed.

    `family` are the tasks that episodes are drawn from where they are several, and `task` is then all their rows;
    `init` is the artefact that training starts from, where it was given one.
    """

    task: Task
    format: Format
    method: str
    config: Any
    seed: int = 0
    name: str = ""
    family: tuple[Task, ...] = ()
    init: Artefact | None = None


class Start(str):
    """What a config says of the artefact that training starts from: "start:" and the hash of its tensors."""


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
    the model's dropout is on while training. Where it has steps of its `own`, its gradient comes from there.
    """

    leaves: dict[str, Tensor]
    build: Callable[[Mapping[str, Tensor]], Learnt]
    format: Format
    config: GradientConfig
    fold: Callable[[Mapping[str, Tensor]], Learnt] | None = None
    lm: FrozenLM | None = None
    dropout: bool = False
    own: OwnStep | None = None

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
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    trace: dict[str, Any] = dataclasses.field(default_factory=dict)

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


PEFT_NAMES = {
    "num_virtual_tokens": "length",
    "prompt_tuning_init": "init",
    "prompt_tuning_init_text": "init_text",
    "prefix_projection": "reparametrise",
    "encoder_hidden_size": "hidden",
    "encoder_reparameterization_type": "encoder",
    "r": "rank",
    "lora_alpha": "alpha",
    "lr": "learning_rate",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "steps",
    "warmup_steps": "warmup",
    "max_grad_norm": "clip",
    "gradient_checkpointing": "checkpointing",
}


def parse_value(method: str, field: str, kind: Any, given: Any) -> Any:
    """One option's value as its annotated type, from a string or a Python value."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if given in args:
            return given
        raise ConfigError(
            f"{method}: option {field}={given!r} is not allowed; choose one of {', '.join(map(str, args))}."
        )
    if Start in args:
        if isinstance(given, str) and given.startswith("start:"):
            return Start(given)
        return parse_value(method, field, next(a for a in args if a is not Start), given)
    if origin in (typing.Union, types.UnionType):
        if given is None or given in ("", "none", "None"):
            return None
        return parse_value(method, field, next(a for a in args if a is not type(None)), given)
    try:
        if kind is bool:
            text = str(given).lower()
            if text in ("true", "1", "yes", "on"):
                return True
            if text in ("false", "0", "no", "off"):
                return False
            raise ValueError
        if kind is int:
            value = int(str(given))
        elif kind is float:
            value = float(given)
        else:
            return str(given)
    except (ValueError, TypeError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{method}: option {field}={given!r} is not {wanted}.") from None
    return value


LOWEST = {
    "samples": 1, "max_new_tokens": 1, "demonstrations": 0, "top_k": 0,
    "length": 1, "steps": 1, "batch_size": 1, "eval_every": 1, "tokens_per_batch": 1, "rank": 1, "hidden": 1,
    "clip": 0.0, "warmup": 0, "patience": 0, "weight_decay": 0.0, "candidates": 1, "examples": 1, "rounds": 0,
    "resampled": 1, "keep": 1, "budget": 1, "proposal_rows": 1, "selection_rows": 1, "proposal_tokens": 1,
    "token_budget": 0, "beam": 1, "longest": 1, "ways": 2, "shots": 1, "queries": 1,
    "inner_steps": 1, "validation_episodes": 0, "pool": 0, "pool_rows": 2, "gradient_rows": 1, "restarts": 0,
    "swaps": 1, "fluency": 0.0, "accumulation": 1, "demos": 1, "sets": 1,
}  # fmt: skip
HIGHEST = 1e30  # squares of what is above overflow inside the optimisers
ABOVE_ZERO = (
    "learning_rate", "alpha", "regularisation", "temperature", "top_p", "proposal_temperature", "proposal_top_p",
    "inner_rate", "model_rate", "sharpness",
)  # fmt: skip


def configure(method: Method, options: Mapping[str, Any]) -> Any:
    """A method's config from options by name; unknown names fail and list the valid ones.

    Raises: ConfigError for an unknown option (another library's name is told ours), a wrong type, a value out of range.
    """
    kinds = typing.get_type_hints(method.Config)
    fields = {f.name for f in dataclasses.fields(method.Config)}
    values = {}
    for name, given in options.items():
        if name not in fields:
            hint = PEFT_NAMES.get(name)
            if hint not in fields:
                hint = next(iter(difflib.get_close_matches(name, fields, 1)), None)
            told = f" Did you mean {hint}?" if hint else ""
            listed = ", ".join(sorted(fields)) or "none"
            raise ConfigError(f"{method.name} has no option {name!r}.{told} Its options: {listed}.")
        value = parse_value(method.name, name, kinds[name], given)
        bad = isinstance(value, float) and value != value
        low = LOWEST.get(name)
        if bad or (low is not None and isinstance(value, int | float) and value < low):
            raise ConfigError(f"{method.name}: option {name}={given!r} is out of range; the lowest allowed is {low}.")
        above = name in ABOVE_ZERO and not isinstance(value, bool)  # some methods have a switch of the same name
        if above and isinstance(value, int | float) and not 0 < value <= HIGHEST:
            raise ConfigError(
                f"{method.name}: option {name}={given!r} is out of range; it must be above 0 and at most {HIGHEST:g}."
            )
        if name == "uncut" and isinstance(value, float) and not 0 < value <= 1:
            raise ConfigError(f"{method.name}: option uncut={given!r} is out of range; it is a share of 1, above 0.")
        if name == "separator" and isinstance(value, str):  # a command line takes neither at its ends
            value = value.replace("\\n", "\n").replace("\\s", " ")
        values[name] = value
    return method.Config(**values)


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
