"""What a person gives to be read by an artefact, as a row: a text, or several fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.core.artefact import Artefact
from foreword.errors import DataError
from foreword.tasks.rows import Row

Given = str | Sequence[str] | Mapping[str, Any]


def row_of(artefact: Artefact, given: Given, where: str, *, labelled: bool = True, options: Sequence[str] = ()) -> Row:
    """A row without a label from what a person gave. It needs no options where it is not to be `labelled`.

    The row's `options` stand among its fields by name unless they are given apart: as "options", or as "row_options" if
    a field has that name.

    Raises: DataError that says what is missing.
    """
    fields, closed = artefact.fields, artefact.format.answers != "options" or not labelled
    key = "options" if "options" not in fields else "row_options"
    names = [*fields, *([] if closed or options else [key])]
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
    chosen = () if closed else tuple(map(str, options or given[key]))
    return Row({name: str(given[name]) for name in fields}, None, chosen, where)
