"""Check names of prompts and of their versions: `name`, `name@3`, `name@alias`."""

import re

from foreword.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RULE = "letters, digits, '.', '_' and '-', at most 128 of them, of which the first is a letter or a digit"


def check_name(name: str, what: str = "name") -> str:
    """Return the same name. Raises: ConfigError if it could leave its folder, or be mistaken for something else."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name[:200]!r} cannot be a {what}: one has {RULE}.")
    return name


def check_alias(alias: str) -> str:
    """Return the same alias. Raises: ConfigError if it looks like a version number, in whose place aliases stand."""
    check_name(alias, "alias")
    if alias.isdigit():
        raise ConfigError(f"{alias!r} cannot be an alias: it is a version's number.")
    return alias


def parse(text: str) -> tuple[str, int | str | None]:
    """Return a name, and the version or alias that is asked for. Raises: ConfigError for a text of none of the three
    forms."""
    name, mark, at = text.partition("@")
    check_name(name)
    if not mark:
        return name, None
    if at.isascii() and at.isdigit() and len(at) <= 9:
        return name, version_number(at)
    return name, check_alias(at)


def version_number(text: str) -> int:
    """Return a version's number. Raises: ConfigError for another way to write it, such as 01: each version has one
    name."""
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ConfigError(f"{text[:20]!r} is no version's number; write one as `foreword` does, such as 1.")
    return int(text)
