"""Check the arguments of public functions against their signatures, so that a wrong type is one sentence.

`checked` reads the annotations once, at the first call. What a signature doesn't say (ranges, names) stays with the
function itself.
"""

import builtins
import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from foreword.core.text import broken, shown
from foreword.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
_REFUSED = object()
LONGEST = 1024  # bits of a whole number
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "True or False", type(None): "None"}
_NAMES |= {Path: "a path", Mapping: "a mapping", Any: "anything"}


def checked(function: F) -> F:
    """Refuse arguments whose type is not what the signature says; numbers of numpy become Python's.

    Raises: ConfigError, at the call, that names the argument and what it may be.
    """

    @functools.cache
    def signature() -> tuple[inspect.Signature, dict[str, Any]]:
        return inspect.signature(function), typing.get_type_hints(function, localns=_Names(function.__globals__))

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        form, hints = signature()
        try:
            bound = form.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{_called(function)}: {error}; it takes {', '.join(form.parameters)}.") from None
        for name, value in bound.arguments.items():
            parameter = form.parameters[name]
            plain = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if name != "self" and plain and name in hints and value is not parameter.default:
                bound.arguments[name] = fit(value, hints[name], f"{_called(function)}: {name}")
        return function(*bound.args, **bound.kwargs)

    return typing.cast(F, inner)


class _Names(dict[str, Any]):
    """Hold the names of a module; a missing one, as one imported for the type checker alone, may be anything."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return Any


def check_fields(value: Any) -> None:
    """Refuse a dataclass whose fields are not of their types. Raises: ConfigError that names the field."""
    hints = _hints(type(value))
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        object.__setattr__(value, field.name, fit(given, hints[field.name], f"{type(value).__name__}: {field.name}"))


_hints = functools.cache(typing.get_type_hints)


def fit(value: Any, kind: Any, what: str) -> Any:
    """Return the value converted to its type. Raises: ConfigError for another type, or text without a UTF-8 form."""
    result = _fit(value, kind)
    if result is _REFUSED:
        raise ConfigError(f"{what} is {shown(value)}; it must be {_named(kind)}.")
    data = kind is Any or Any in typing.get_args(kind)  # rows, which are told by their numbers when they are read
    reason = None if data else _broken_in(result)
    if reason:
        raise ConfigError(f"{what} {reason}.")
    return result


def _broken_in(value: Any, depth: int = 4) -> str | None:
    """Return what is wrong with the first text without a UTF-8 form in a value, its lists and its mappings, or None."""
    if isinstance(value, str):
        return None if value.isascii() else broken(value)
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((reason for one in parts if depth and (reason := _broken_in(one, depth - 1))), None)


def _fit(value: Any, kind: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return value
    if origin is Annotated:
        return _fit(value, args[0])
    if origin is Literal:
        return value if any(isinstance(value, type(one)) for one in args) else _REFUSED  # which, the function says
    if origin in (typing.Union, types.UnionType):
        found = (_fit(value, one) for one in args)
        return next((one for one in found if one is not _REFUSED), _REFUSED)
    if origin is tuple:
        return _fit_tuple(value, args)
    if origin in (Sequence, list, Iterable):
        return _fit_items(value, args[0] if args else Any)
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            return _REFUSED
        fits = all(_fit(k, args[0]) is not _REFUSED and _fit(v, args[1]) is not _REFUSED for k, v in value.items())
        return value if fits else _REFUSED
    if origin is Callable:
        return value if callable(value) else _REFUSED
    return _fit_plain(value, kind)


def _fit_plain(value: Any, kind: Any) -> Any:
    if kind is None:
        return value if value is None else _REFUSED
    if kind is bool:
        named = type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
        return bool(value) if named or isinstance(value, bool) else _REFUSED
    if kind in (int, float):
        return _fit_number(value, kind)
    if kind is Path:
        return value if isinstance(value, os.PathLike) else _REFUSED
    if not isinstance(kind, type):
        return value  # an alias that has no check of its own
    return value if isinstance(value, kind) else _REFUSED


def _fit_number(value: Any, kind: Any) -> Any:
    """Return Python's numbers as they are, and numpy's as Python's; refuse spans of time, which numpy calls numbers."""
    if isinstance(value, int) and value.bit_length() > LONGEST:
        return _REFUSED  # what cannot be written in a message or a record
    if isinstance(value, int) and kind is int:
        return value
    fits: Any = Integral if kind is int else (Real, Decimal)
    if isinstance(value, bool) or not isinstance(value, fits):
        return _REFUSED
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        return _REFUSED
    return value if isinstance(value, int | float) else number


def _fit_tuple(value: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return _REFUSED
    if not args:
        return tuple(value)
    if len(args) == 2 and args[1] is Ellipsis:
        found = _fit_items(value, args[0])
        return _REFUSED if found is _REFUSED else tuple(found)
    found = [_fit(one, kind) for one, kind in zip(value, args, strict=False)]
    return _REFUSED if len(value) != len(args) or _REFUSED in found else tuple(found)


def _fit_items(value: Any, kind: Any) -> Any:
    """Return a list of converted items; refuse text, which is one item. A generator is read once, here."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return _REFUSED
    try:
        items = value if isinstance(value, Sequence) else list(value)
    except TypeError:  # an array without a dimension says that it can be iterated
        return _REFUSED
    found = [_fit(one, kind) for one in items]
    refused = any(one is _REFUSED for one in found)
    return _REFUSED if refused else tuple(found) if isinstance(value, tuple) else found


def _named(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _named(args[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_named, args)))
    if origin in (Sequence, list, Iterable, tuple):
        inner = next((one for one in args if one is not Ellipsis), Any)
        return f"a list of {_named(inner).removeprefix('a ')}"
    if origin in (Mapping, dict):
        return f"a mapping of {_named(args[0]).removeprefix('a ')} to {_named(args[1]).removeprefix('a ')}"
    if origin is Callable:
        return "a function"
    return _NAMES.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _called(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")
