"""Hold the rules that fill the slots of a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class Slots:
    """How attributes are said: `phrases` are regular expressions by attribute and value, over text as `plain` has it.

    Values of `names`, and of attributes without phrases, are said as they are. Values of one tuple of `same` say the
    same of their attribute. `general` values are words for anything, neither repeated nor hallucinated.
    """

    phrases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    same: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    general: frozenset[tuple[str, str]] = frozenset()
