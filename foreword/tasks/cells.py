"""Read the cells of data: what training, prediction and the server take for a text, a label, options and answers.

A cell may be what JSON, CSV, Parquet, pandas, numpy, pyarrow or the `datasets` library hold. None of them is imported
for it.
"""

import datetime
import math
import numbers
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from foreword.core.text import broken, parse_json, shown
from foreword.errors import DataError

DIGITS = re.compile(r"-?\d{1,300}")  # a whole number that `int` reads
_WRITTEN = (bool, float, Decimal, datetime.date, datetime.time, uuid.UUID)  # whose `str` is how a file would write them


def plain(value: Any, place: str) -> Any:
    """Return a cell as None, str, bool, int, float, Decimal, a date, or a list of cells; other types as they are.

    What stands for a missing value (NaN, NaT, NA) is None. Bytes are read as UTF-8.

    Raises: DataError for bytes that are not UTF-8.
    """
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value), place)
    if isinstance(value, np.generic):
        return _of_numpy(value, place)
    if isinstance(value, float | Decimal):
        return None if value != value else value
    if isinstance(value, np.ndarray) and not value.ndim:
        return plain(value[()], place)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, list | tuple | np.ndarray):
        return [one if isinstance(one, list | tuple) else plain(one, place) for one in value]
    return _of_library(value, place)


def _of_numpy(value: np.generic, place: str) -> Any:
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer) and not isinstance(value, np.timedelta64):
        return int(value)
    if isinstance(value, np.floating):
        return plain(float(value), place)
    if isinstance(value, np.bytes_):
        return _decoded(bytes(value), place)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value.astype("datetime64[us]").item()
    return value


def _of_library(value: Any, place: str) -> Any:
    pandas, pyarrow, torch = (sys.modules.get(name) for name in ("pandas", "pyarrow", "torch"))
    if pandas is not None and (value is pandas.NA or value is pandas.NaT):
        return None
    if pandas is not None and isinstance(value, pandas.Series | pandas.Index | pandas.api.extensions.ExtensionArray):
        return [plain(one, place) for one in value]
    if pyarrow is not None and isinstance(value, pyarrow.Scalar):
        return plain(value.as_py(), place)
    if pyarrow is not None and isinstance(value, pyarrow.Array | pyarrow.ChunkedArray):
        return [plain(one, place) for one in value.to_pylist()]
    if torch is not None and isinstance(value, torch.Tensor) and value.ndim < 2:
        return plain(value.tolist(), place)
    return value


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is bytes that are not UTF-8 (byte {error.start}); decode them first") from None


def is_missing(value: Any) -> bool:
    """Return whether a plain cell is missing: None, or a text of white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def written(value: Any, place: str) -> str | None:
    """Return a plain cell of one value as text; None for a type without a text form.

    Raises: DataError for half of a character (a lone surrogate), and for a number that is infinite or too long.
    """
    if isinstance(value, str):
        reason = broken(value)
        if reason:
            raise DataError(f"{place} {reason}")
        return value
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise DataError(f"{place} is an infinite number; give text or a finite number")
    if isinstance(value, _WRITTEN):
        return str(value)
    if isinstance(value, int):
        try:
            return str(value)
        except ValueError:
            raise DataError(f"{place} is a number of thousands of digits; give it as text") from None
    return None


def text_of(value: Any, place: str) -> str:
    """Return the text of a field. `place` names it in messages. Raises: DataError for a cell that is no text."""
    cell = plain(value, place)
    if is_missing(cell):
        raise DataError(f"{place} is empty; give it text or leave the row out")
    text = written(cell, place)
    if text is None:
        raise DataError(f"{place} is a {type(value).__name__}; give text")
    return text


def unlabelled(place: str, why: str) -> DataError:
    """Return the error of a row without a label; `why` is a sentence that says what needs the label, or what to do."""
    return DataError(f"{place or 'A row'} has no label. {why}")


def name_of(value: Any, place: str, names: Sequence[str] | None = None) -> str:
    """Return a label as its name: 1 and "1" and 1.0 are one label. With `names` a number is an index into them.

    Raises: DataError for a cell that is no label.
    """
    cell = plain(value, f"{place}: the label")
    if is_missing(cell):
        raise unlabelled(place, "Give one, or leave the row out.")
    if isinstance(cell, float | Decimal) and math.isfinite(cell) and cell == int(cell):
        cell = int(cell)
    name = written(cell, f"{place}: the label")
    if name is None:
        raise DataError(f"{place}: the label is {type(value).__name__} ({shown(value)}); give text or a number")
    if names is not None and isinstance(cell, numbers.Real) and not isinstance(cell, bool):
        if not (isinstance(cell, int) and 0 <= cell < len(names)):
            raise DataError(f"{place}: label {name} is outside of 0 to {len(names) - 1}; correct it")
        return names[cell]
    return name.strip()


def options_of(value: Any, place: str) -> tuple[str, ...]:
    """Return the options of one row: a list of texts, or the JSON of one. Raises: DataError for anything else."""
    cell = plain(value, f"{place}: the options")
    if isinstance(cell, str):
        cell = _json_list(cell)
    if not isinstance(cell, list) or len(cell) < 2:
        raise DataError(f"{place}: the options must be a list of two or more texts")
    texts = [None if is_missing(one := plain(o, place)) else written(one, f"{place}: an option") for o in cell]
    options = tuple("" if text is None else text.strip() for text in texts)
    if not all(options) or len(set(options)) < len(options):
        raise DataError(f"{place}: options must be different texts and not empty, but are {shown(list(cell))}")
    return options


def targets_of(value: Any, column: str, place: str, *, textual: bool = False) -> tuple[str, ...]:
    """Return the accepted answers: a list holds alternatives, any other cell is one answer, whatever it looks like.

    `textual` cells (of CSV) have no lists: there a JSON list of texts holds alternatives.

    Raises: DataError for an answer that is empty or no text.
    """
    where = f"{place}: {column!r}"
    cell = plain(value, where)
    if textual and isinstance(cell, str) and (parsed := text_list(cell)):
        cell = parsed
    answers = [plain(one, where) for one in cell] if isinstance(cell, list) else [cell]
    texts = [None if is_missing(one) else written(one, where) for one in answers]
    if not texts or None in texts:
        raise DataError(f"{where} is {shown(value)}; give the answer as text, or a list of answers")
    return tuple(dict.fromkeys(text.strip() for text in texts if text is not None))


def text_list(cell: Any) -> list[str] | None:
    """Return the texts of a JSON list in a cell of text; None if it is no such list."""
    parsed = _json_list(cell) if isinstance(cell, str) else None
    return parsed if parsed and all(isinstance(one, str) for one in parsed) else None


def _json_list(cell: str) -> list[Any] | None:
    if not cell.lstrip().startswith("["):
        return None
    try:
        parsed = parse_json(cell)
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) else None


def named_cells(value: Any, place: str) -> Mapping[Any, Any] | None:
    """Return a row whose cells have names: a mapping, a named tuple, a row of a DataFrame or of a structured array.

    None for anything else, and for a Series that is merely numbered, which is a sequence.

    Raises: DataError for a Series with a name twice, since one of the two would be lost.
    """
    if isinstance(value, Mapping):
        return value
    names = getattr(value, "_fields", None)
    if isinstance(value, tuple) and isinstance(names, tuple):
        return dict(zip(names, value, strict=True))
    if isinstance(value, np.void) and value.dtype.names is not None:
        return dict(zip(value.dtype.names, value.item(), strict=True))
    pandas = sys.modules.get("pandas")
    return _of_series(value, place) if pandas is not None and isinstance(value, pandas.Series) else None


def _of_series(series: Any, place: str) -> Mapping[Any, Any] | None:
    names = list(series.index)
    if names == list(range(len(names))):
        return None
    refuse_twice(names, place)
    return dict(zip(names, series, strict=True))


def column_names(record: Mapping[Any, Any], place: str) -> Mapping[str, Any]:
    """Return the record with text as names of columns; whole numbers become text, as in a table without a header.

    Raises: DataError for a name of another type, or two that are the same.
    """
    if all(type(name) is str for name in record):
        bad = next((name for name in record if not name.isascii() and broken(name)), None)
        if bad is None:
            return record
        raise DataError(f"{place}: the name of column {shown(bad)} {broken(bad)}")
    found = {_column(name, place): value for name, value in record.items()}
    if len(found) < len(record):
        raise DataError(f"{place} has two columns whose names are one as text ({shown(list(record))}); rename one")
    return found


def _column(name: Any, place: str) -> str:
    cell = plain(name, f"{place}: the name of a column")
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise DataError(f"{place} has a column named {shown(name)}; name columns with text or whole numbers")
    return written(cell, f"{place}: the name of a column") or ""


def refuse_twice(names: Sequence[Any], place: str) -> None:
    """Refuse a table that has a column twice, since one of the two would be lost. Raises: DataError that names it."""
    twice = first_twice(names)
    if twice is not None:
        raise DataError(f"{place} has the column {twice!r} twice; rename or remove one of the two")


def first_twice(names: Sequence[Any]) -> Any:
    """Return the first name that occurs twice; None if all differ."""
    seen: set[Any] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)
