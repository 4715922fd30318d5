"""Turn the inputs of an artefact into rows: a text, or several fields. Cells are read as in training."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from foreword.core.artefact import Artefact
from foreword.core.text import shown
from foreword.errors import ConfigError, DataError
from foreword.tasks.cells import column_names, named_cells, options_of, plain, text_of
from foreword.tasks.rows import Row
from foreword.tasks.sources import records_of

Given = str | Sequence[str] | Mapping[str, Any]


def items_of(texts: Any) -> Iterable[Any]:
    """Return the items of the input of predict: the rows of a table, or the elements of a column or list.

    Raises: ConfigError for one text, one row, or anything else whose items are no texts.
    """
    pandas, numpy = sys.modules.get("pandas"), sys.modules.get("numpy")
    if isinstance(texts, str | bytes | bytearray | memoryview):
        raise ConfigError("predict takes a list of texts; a single one goes in brackets: predict(['fine film']).")
    if isinstance(texts, Mapping):
        raise ConfigError("predict takes a list of rows; a single one goes in brackets: predict([{'text': '...'}]).")
    records = records_of(texts, "the table")
    if records is not None:
        return records
    if pandas is not None and isinstance(texts, pandas.Series | pandas.Index):
        return list(texts)
    scalar = numpy is not None and isinstance(texts, numpy.ndarray) and not texts.ndim
    if not isinstance(texts, Iterable) or isinstance(texts, set | frozenset) or scalar:
        raise ConfigError(f"predict takes a list of texts or of rows, and was given {shown(texts)}.")
    return texts


def row_of(artefact: Artefact, given: Any, where: str, *, labelled: bool = True, options: Any = ()) -> Row:
    """Build a row without a label from one input. Its options are not read unless it is to be `labelled`.

    One text is a row of one field. Several are a mapping by name, or a sequence in the fields' order; a row of a table
    that has names (of iterrows, itertuples or a structured array) is read by its names, in any order. The row's options
    stand among the fields unless `options` are given: as "options", or as "row_options" if a field has that name.

    Raises: DataError that says what is missing, or what is no text.
    """
    fields, closed = artefact.fields, artefact.format.answers != "options" or not labelled
    key = "options" if "options" not in fields else "row_options"
    names = [*fields, *([] if closed or options else [key])]
    named = named_cells(given, where)
    if named is not None:
        cells = column_names(named, where)
    else:
        cells = _by_order(plain(given, where), names, where)
    missing = [name for name in names if name not in cells]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; give all of {', '.join(names)} by name.")
    chosen = () if closed else options_of(options or cells[key], where)
    places = [where] if len(fields) == 1 else [f"{where}: field {name!r}" for name in fields]
    texts = {name: text_of(cells[name], place) for name, place in zip(fields, places, strict=True)}
    return Row(texts, None, chosen, where)


def _by_order(given: Any, names: Sequence[str], where: str) -> Mapping[str, Any]:
    if isinstance(given, list):
        if len(given) > len(names):
            raise DataError(f"{where} has {len(given)} items, and the artefact reads {', '.join(names)}; give those.")
        return dict(zip(names, given, strict=False))
    return {names[0]: given} if len(names) == 1 else {}
