"""Read the options of a comparison, fixed values and grids by method, and list the points that each method may try."""

import itertools
import random
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from foreword.errors import ConfigError
from foreword.training.contract import Method
from foreword.training.options import configure

Options = Mapping[str, Mapping[str, Any]]


def parse_options(texts: Sequence[str], methods: Sequence[Method]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Read options by method: `method.key=v1,v2` sets one method's option, `key=v` that of every method that has it.

    Commas make a grid. Options whose value is free text take one value, commas included.

    Raises: ConfigError for a text of another form, a method that is not compared, or an option that no method has.
    """
    results: dict[str, dict[str, tuple[str, ...]]] = {m.name: {} for m in methods}
    for text in texts:
        name, equals, value = text.partition("=")
        owner, dot, key = name.strip().rpartition(".")
        if not equals or not key:
            raise ConfigError(f"option {text!r} is not of the form key=value or method.key=value1,value2.")
        if dot and owner not in results:
            raise ConfigError(
                f"option {text!r} names the method {owner!r}, which is not compared; compared are {', '.join(results)}."
            )
        takers = [m for m in methods if (m.name == owner if dot else key in typing.get_type_hints(m.Config))]
        if not takers:
            known = sorted({k for m in methods for k in typing.get_type_hints(m.Config)})
            raise ConfigError(
                f"none of {', '.join(results)} has the option {key!r}; their options: {', '.join(known)}."
            )
        for method in takers:
            free = _is_free_text(typing.get_type_hints(method.Config).get(key))
            results[method.name][key] = (value,) if free else tuple(part.strip() for part in value.split(","))
    return results


def points(method: Method, options: Mapping[str, Any], allowed: int | None = None) -> list[Any]:
    """Return the configs of a method's grid, in order; each option whose value is a list or tuple is a dimension of it.

    If the grid has more points than `allowed`, that many are drawn with a fixed seed.

    Raises: ConfigError for an unknown option or value.
    """
    values = {key: tuple(v) if isinstance(v, list | tuple) else (v,) for key, v in options.items()}
    for key, given in values.items():
        if not given:
            raise ConfigError(f"{method.name}: the grid of option {key!r} is empty; give one value or more.")
    results: list[Any] = []
    for point in itertools.product(*values.values()):
        config = configure(method, dict(zip(values, point, strict=True)))
        if config not in results:
            results.append(config)
    if allowed is None or len(results) <= allowed:
        return results
    kept = set(random.Random(0).sample(range(len(results)), allowed))
    return [config for i, config in enumerate(results) if i in kept]


def _is_free_text(kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_is_free_text(arg) for arg in typing.get_args(kind))
    return kind is str and typing.get_origin(kind) is not Literal
