"""The contract of a method: `start(lm, job)` gives a learner, and the one loop turns learners into artefacts."""

import dataclasses
import difflib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from foreword.core.format import Format
from foreword.core.learnt import Learnt
from foreword.core.shapes import Tensor
from foreword.errors import ConfigError
from foreword.models.base import FrozenLM
from foreword.tasks.task import Task


@dataclass(frozen=True)
class GradientConfig:
    """What every method with a gradient shares. A schedule counts optimiser steps.

    `batch_size` rows make one step whatever the accumulation; `tokens_per_batch` bounds one forward pass (longer steps
    are accumulated; None: what suits the device). Every `eval_every` steps the development rows are scored; after
    `patience` evaluations without a better score the learner stops (0: never), and its best step is kept when `keep` is
    "best".
    """

    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "adafactor"] = "adamw"
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
class NoConfig:
    """A method without options."""


@dataclass(frozen=True)
class Job:
    """One artefact to make: a task put in a format, a method with its config, and a seed."""

    task: Task
    format: Format
    method: str
    config: Any
    seed: int = 0
    name: str = ""


@dataclass(frozen=True, eq=False)
class Learner:
    """What the loop trains: fp32 leaf tensors, and how they become what the model is given.

    `build` runs once a step, however many rows the step has. `fold` makes the value that is saved (what `build` gives,
    unless said otherwise). `lm` is the model to train through where it is not the job's own, and `dropout` says whether
    the model's dropout is on while training.
    """

    leaves: dict[str, Tensor]
    build: Callable[[Mapping[str, Tensor]], Learnt]
    format: Format
    config: GradientConfig
    fold: Callable[[Mapping[str, Tensor]], Learnt] | None = None
    lm: FrozenLM | None = None
    dropout: bool = False

    def saved(self, leaves: Mapping[str, Tensor]) -> Learnt:
        """What an artefact keeps of these leaves."""
        return (self.fold or self.build)(leaves)


class Method(ABC):
    """A way to make an artefact. Final subclasses hold no state; capabilities are class-level."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type]
    form: ClassVar[str]
    gradient: ClassVar[bool]
    mixed_batch: ClassVar[bool]
    freezes_lm: ClassVar[bool]
    episodes: ClassVar[bool] = False
    uses_lm: ClassVar[bool] = True


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
    def learn(self, lm: FrozenLM, job: Job) -> tuple[Learnt, Format, int]:
        """What was learnt, the format to use it in, and how many numbers were trained."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search ends with: a value, the format to use it in, how many numbers (or tokens) were chosen, what there
    is to report, and the trace of its steps."""

    value: Learnt
    format: Format
    numbers: int
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    trace: dict[str, Any] = dataclasses.field(default_factory=dict)


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


class SearchMethod(Method):
    """A method that searches step by step with a loop of its own; the same state gives the same next step."""

    gradient = False

    @abstractmethod
    def search(self, lm: FrozenLM, job: Job, notebook: Notebook) -> Found:
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


def _parse(method: str, field: str, kind: Any, given: Any) -> Any:
    """One option's value as its annotated type, from a string or a Python value."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if given in args:
            return given
        raise ConfigError(
            f"{method}: option {field}={given!r} is not allowed; choose one of {', '.join(map(str, args))}."
        )
    if origin in (typing.Union, types.UnionType):
        if given is None or given in ("", "none", "None"):
            return None
        return _parse(method, field, next(a for a in args if a is not type(None)), given)
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
    "length": 1, "steps": 1, "batch_size": 1, "eval_every": 1, "tokens_per_batch": 1, "rank": 1, "hidden": 1,
    "clip": 0.0, "warmup": 0, "patience": 0, "weight_decay": 0.0, "candidates": 1, "pool_rows": 2, "gradient_rows": 1,
    "beam": 1, "restarts": 0, "swaps": 1, "fluency": 0.0, "accumulation": 1, "rounds": 1,
}  # fmt: skip
HIGHEST = 1e30  # squares of what is above overflow inside the optimisers
ABOVE_ZERO = ("learning_rate", "alpha", "regularisation")


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
        value = _parse(method.name, name, kinds[name], given)
        bad = isinstance(value, float) and value != value
        low = LOWEST.get(name)
        if bad or (low is not None and value is not None and value < low):
            raise ConfigError(f"{method.name}: option {name}={given!r} is out of range; the lowest allowed is {low}.")
        if name in ABOVE_ZERO and value is not None and not 0 < value <= HIGHEST:
            raise ConfigError(
                f"{method.name}: option {name}={given!r} is out of range; it must be above 0 and at most {HIGHEST:g}."
            )
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
