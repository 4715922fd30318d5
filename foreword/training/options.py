"""Check the options of methods, and turn words of a command line or a grid into their values."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Protocol, final, runtime_checkable

from foreword.core.text import broken, shown
from foreword.errors import ConfigError


@runtime_checkable
class Configurable(Protocol):
    """Describe what has a name and a dataclass of options, as a method does."""

    name: ClassVar[str]
    Config: ClassVar[type]


class Start(str):
    """Hold the name of the artefact that training starts from in a config: "start:" and the hash of its tensors."""


@final
@dataclass(frozen=True)
class Range:
    """Say which numbers are allowed: at least `low` (`above`: more than it), and at most `high`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: int | float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        least = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return least if self.high == math.inf else f"{least} and at most {self.high:g}"


@final
class Escaped:
    """Mark a text in which \\n is a new line and \\s a space, which a command line would not take at its ends."""

    def read(self, text: str) -> str:
        """Return the text with its new lines and spaces."""
        return text.replace("\\n", "\n").replace("\\s", " ")


# What a field of a config is annotated with, so that its range stands where the field does.
Count = Annotated[int, Range(1.0)]
Whole = Annotated[int, Range(0.0)]
Several = Annotated[int, Range(2.0)]
Positive = Annotated[float, Range(0.0, 1e30, above=True)]  # squares of what is above overflow inside the optimisers
Amount = Annotated[float, Range(0.0)]
Share = Annotated[float, Range(0.0, 1.0, above=True)]
Fraction = Annotated[float, Range(0.0, 1.0)]
Joint = Annotated[str, Escaped()]

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


def configure(method: Configurable, options: Mapping[str, Any]) -> Any:
    """Return a method's config from options by name.

    Raises: ConfigError for an unknown option (the message lists the valid ones, and translates names of PEFT), a wrong
    type, or a value out of range.
    """
    kinds = kinds_of(method.Config)
    fields = {f.name for f in dataclasses.fields(method.Config)}
    values = {}
    for name, value in options.items():
        if name not in fields:
            hint = PEFT_NAMES.get(name)
            if hint not in fields:
                hint = next(iter(difflib.get_close_matches(name, fields, 1)), None)
            guess = f" Did you mean {hint}?" if hint else ""
            listed = ", ".join(sorted(fields)) or "none"
            raise ConfigError(f"{method.name} has no option {name!r}.{guess} Its options: {listed}.")
        values[name] = parse_value(method.name, name, kinds[name], value)
    return method.Config(**values)


def kinds_of(config: type) -> dict[str, Any]:
    """Return the types of a config's fields with their ranges and sentences."""
    return typing.get_type_hints(config, include_extras=True)


def parse_value(method: str, field: str, kind: Any, raw: Any) -> Any:
    """Return an option's value as its annotated type, from a string or a Python value.

    Raises: ConfigError for another type, or a value out of range.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _checked(method, field, args[1:], parse_value(method, field, args[0], raw), raw)
    if origin is Literal:
        if isinstance(raw, str | int | float | None) and raw in args:
            return raw
        raise ConfigError(
            f"{method}: option {field}={shown(raw)} is not allowed; choose one of {', '.join(map(str, args))}."
        )
    if Start in args:
        if isinstance(raw, str) and raw.startswith("start:"):
            return Start(raw)
        return parse_value(method, field, next(a for a in args if a is not Start), raw)
    if origin in (typing.Union, types.UnionType):
        if raw is None or (isinstance(raw, str) and raw in ("", "none", "None")):
            return None
        return parse_value(method, field, next(a for a in args if a is not type(None)), raw)
    return _plain(method, field, kind, raw)


def _plain(method: str, field: str, kind: type, raw: Any) -> Any:
    """Return a value of a type without parts. Raises: ConfigError."""
    try:
        if kind is bool:
            text = str(raw).lower() if isinstance(raw, str | int) else ""
            if text in ("true", "1", "yes", "on"):
                return True
            if text in ("false", "0", "no", "off"):
                return False
            raise ValueError
        if kind in (int, float) and not isinstance(raw, str | Real | Decimal):
            raise TypeError
        if kind is int:
            return int(str(raw))
        if kind is float:
            value = float(raw)
            if math.isnan(value):
                raise ValueError
            return value
        if not isinstance(raw, str | int | float | PurePath) or broken(str(raw)):
            raise ValueError
        return str(raw)
    except (ValueError, TypeError, OverflowError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
        raise ConfigError(f"{method}: option {field}={shown(raw)} is not {wanted}.") from None


def _checked(method: str, field: str, extras: tuple[Any, ...], value: Any, raw: Any) -> Any:
    """Return the value with its escapes read. Raises: ConfigError if it is out of range."""
    for extra in extras:
        if isinstance(extra, Range) and value not in extra:
            raise ConfigError(f"{method}: option {field}={shown(raw)} is out of range; it must be {extra}.")
        if isinstance(extra, Escaped):
            value = extra.read(value)
    return value
