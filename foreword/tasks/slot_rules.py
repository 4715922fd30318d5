"""Define the rules by which the slots of a table are found in a text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class Slots:
    """Hold how attributes are said: `phrases` are regular expressions by attribute and value, over `slots.plain` text.

    Values of `names`, and of attributes without phrases, are said literally. Values of one tuple of `same` mean the
    same for their attribute. `general` values are words for anything, never counted as repeated or hallucinated.
    """

    phrases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    same: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    general: frozenset[tuple[str, str]] = frozenset()
