"""What a person gives to be read by an artefact, as a row: a text, or several fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.core.artefact import Artefact
from foreword.errors import DataError
from foreword.tasks.rows import Row

Given = str | Sequence[str] | Mapping[str, Any]


def row_of(artefact: Artefact, given: Given, where: str, *, labelled: bool = True) -> Row:
    """A row without a label from what a person gave. It needs no options where it is not to be `labelled`.

    Raises: DataError that says what is missing.
    """
    fields, closed = artefact.fields, artefact.format.answers != "options" or not labelled
    names = [*fields, *([] if closed else ["options"])]
    if isinstance(given, str):
        given = {fields[0]: given} if len(names) == 1 else {}
    elif not isinstance(given, Mapping):
        given = dict(zip(fields, given, strict=False))
    missing = [name for name in names if name not in given]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; give all of {', '.join(names)} by name.")
    empty = [name for name in fields if not str(given[name]).strip()]
    if len(empty) == len(fields):
        raise DataError(f"{where} is empty; give a text.")
    options = () if closed else tuple(map(str, given["options"]))
    return Row({name: str(given[name]) for name in fields}, None, options, where)
