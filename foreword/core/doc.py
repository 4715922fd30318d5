"""Describe each option of a config in one sentence, beside its field: `steps: Annotated[int, Doc("...")] = 100`."""

import inspect
import textwrap
from dataclasses import dataclass
from typing import Annotated, TypeVar, final, get_args, get_origin

C = TypeVar("C", bound=type)


@final
@dataclass(frozen=True)
class Doc:
    """Say in one sentence what a field means."""

    text: str


def docs_of(config: type) -> dict[str, str]:
    """Return the sentence of each field by name, those of parents first.

    A subclass that gives a field another default keeps the parent's sentence, unless it brings its own.
    """
    docs: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        for name, kind in inspect.get_annotations(parent).items():
            for extra in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
                if isinstance(extra, Doc):
                    docs[name] = extra.text
    return docs


def documented(config: C) -> C:
    """Append the options and their sentences to the docstring of a config, so that `help` shows them."""
    lines = [
        textwrap.fill(f"- {name}: {text}", 112, initial_indent="    ", subsequent_indent="      ")
        for name, text in docs_of(config).items()
    ]
    config.__doc__ = "\n".join([inspect.cleandoc(config.__doc__ or ""), "", "Options:", *lines])
    return config
