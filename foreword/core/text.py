"""Check that text from outside is of whole characters, parse JSON without a traceback, show values in messages."""

import json
import reprlib
from collections.abc import Sequence
from typing import Any

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80
_BYTES = range(0xDC80, 0xDD00)  # how Python carries bytes that are not UTF-8 in an argument or a stream


def broken(text: str) -> str | None:
    """Say what is wrong with text that has no UTF-8 form; None if nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if code in _BYTES:
            return f"has the byte 0x{code - 0xDC00:02x}, which is not UTF-8; convert it to UTF-8 first"
        return f"has half of a character (\\u{code:04x}, a lone surrogate); repair or remove it"
    return None


def shown(value: Any) -> str:
    """Return a short repr for a message, whatever the value is."""
    try:
        return " ".join(_SHOWN.repr(value).split()).encode(errors="backslashreplace").decode()
    except Exception:  # a repr of its own may raise anything
        return f"a {type(value).__name__}"


def parse_json(text: str | bytes, *, once: bool = False) -> Any:
    """Return the value of a JSON text. `once` refuses an object that has a key twice, of which the last would be kept.

    Raises: ValueError with the reason, for nests that are too deep and numbers that are too long too.
    """
    try:
        return json.loads(text, object_pairs_hook=_once if once else None)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        long = "integer string conversion" in str(error)
        raise ValueError("it has a number of thousands of digits" if long else str(error)) from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"it has the key {shown(twice)} twice; keep one")
    return result
