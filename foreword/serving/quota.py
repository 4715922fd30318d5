"""Limit how much one key may have under way, and how much the store keeps for it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, final

from foreword.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@final
@dataclass(frozen=True)
class Quota:
    """Hold the limits of one key. None is no limit of that key alone: it shares what all keys have.

    Under way: `requests`, bodies that arrive included; `rows` that wait for the model; `uploads` that are checked.
    Stored, of what this key added and nobody removed: `prompts`, their `versions`, and the `bytes` of these.
    """

    requests: int | None = None
    rows: int | None = None
    uploads: int | None = None
    prompts: int | None = None
    versions: int | None = None
    bytes: int | None = None

    @staticmethod
    def read(limits: Any) -> "Quota":
        """Read limits as `as_dict` gives them. Raises: ValueError for anything else."""
        if not isinstance(limits, Mapping) or not limits.keys() <= {*NAMES}:
            raise ValueError(f"limits are of {', '.join(NAMES)}")
        if not all(type(value) is int and value >= 0 for value in limits.values()):
            raise ValueError("a limit is a whole number")
        return Quota(**limits)

    def as_dict(self) -> dict[str, int]:
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}

    def with_limits(self, texts: Sequence[str]) -> "Quota":
        """Return these limits with `rows=100`, `bytes=2GB` or `rows=none` in place of earlier ones. Raises:
        ConfigError."""
        changed: dict[str, int | None] = {}
        for text in texts:
            name, mark, value = text.partition("=")
            if not mark or name not in NAMES:
                raise ConfigError(
                    f"{text!r} is no limit of a key; write NAME=NUMBER, where NAME is one of {', '.join(NAMES)}."
                )
            if value == "none":
                changed[name] = None
            elif name == "bytes":
                changed[name] = parse_size(value)
            elif value.isascii() and value.isdigit() and len(value) <= 18:
                changed[name] = int(value)
            else:
                raise ConfigError(f"{text!r} is no limit of a key; {name} is a whole number, or none for no limit.")
        return replace(self, **changed)

    def before(self, other: "Quota") -> "Quota":
        """Return these limits, with the other's where this one has none."""
        return Quota(**{**other.as_dict(), **self.as_dict()})


NO_LIMITS = Quota()
NAMES = tuple(field.name for field in fields(Quota))


def parse_size(text: str) -> int:
    """Return the bytes of a size: 512MB, 2GB, or a number of bytes. Raises: ConfigError."""
    number = text.strip().upper().rstrip("BKMGT")
    unit = text.strip().upper()[len(number) :].strip()
    digits = number.strip().replace(".", "", 1)
    if unit not in UNITS or not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise ConfigError(f"{text!r} is not a size; write 512MB or 2GB.")
    return int(float(number) * UNITS[unit])


@final
class Shares:
    """Share places between keys; not thread-safe.

    One key may have all places while it is alone. If they are taken, a key that has less than its even share is let in
    all the same, so that others who hold very many do not keep it out; so there are at most a few times as many as
    `most`, and each key beyond it had to be a valid one.
    """

    def __init__(self, most: int):
        self.most, self.total = most, 0
        self.of: Counter[str] = Counter()

    def refusal(self, key: str, count: int, own: int | None = None) -> Literal["own", "all"] | None:
        """Return why a key may not have `count` more: "own" for its `own` limit, "all" for that of all keys; None if it
        may."""
        mine = self.of[key] + count
        if own is not None and mine > own:
            return "own"
        full = self.total + count > self.most and mine > self.most / len(self.of.keys() | {key})
        return "all" if full else None

    def take(self, key: str, count: int = 1) -> None:
        self.of[key] += count
        self.total += count

    def give(self, key: str, count: int = 1) -> None:
        self.of[key] -= count
        self.total -= count
        if not self.of[key]:
            del self.of[key]


@final
@dataclass(frozen=True)
class Used:
    """Count what the store keeps for a key."""

    prompts: int = 0
    versions: int = 0
    bytes: int = 0

    def plus(self, other: "Used", sign: int = 1) -> "Used":
        return Used(
            self.prompts + sign * other.prompts, self.versions + sign * other.versions, self.bytes + sign * other.bytes
        )


@final
class KeyUsage:
    """Count what the store keeps for each key, by the states of its names."""

    def __init__(self) -> None:
        self._of: dict[str, Used] = {}

    def of(self, key: str) -> Used:
        return self._of.get(key, Used())

    def swap(self, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
        """Count a name's new state in place of its old one."""
        for state, sign in ((before, -1), (after, 1)):
            for key, used in used_by(state or {}).items():
                self._of[key] = self.of(key).plus(used, sign)
                if self._of[key] == Used():
                    del self._of[key]


def used_by(state: Mapping[str, Any]) -> dict[str, Used]:
    """Return what one name's state keeps for each key that added versions; removed ones keep bytes until their folders
    are gone."""
    results: dict[str, Used] = {}
    for versions, counted in ((state.get("versions"), 1), (state.get("owed"), 0)):
        for about in (versions or {}).values():
            key, size = about.get("by"), about.get("bytes")
            if isinstance(key, str) and key and type(size) is int:
                prompts = int(bool(counted and not results.get(key, Used()).prompts))
                results[key] = results.get(key, Used()).plus(Used(prompts, counted, size))
    return results
