"""Read the labels of rows that bring their own options: the position of the right option, or its text.

Options that are numbers can make a label both: of the options 1, 2, 3 the label 1 may be the first or the second. One
reading holds for the whole column, in every split and whatever the kind of file.
"""

from collections.abc import Sequence
from typing import Literal

from foreword.errors import DataError
from foreword.tasks.cells import DIGITS, name_of, options_of
from foreword.tasks.rows import Columns, Table, option_cells

Reading = Literal["position", "text"]


def indices(value: object, options: Sequence[str], place: str) -> tuple[int | None, int | None]:
    """Return the index of the option that a label names as a position, from 0, and as a text; None if it names none."""
    name = name_of(value, place)
    number = int(name) if DIGITS.fullmatch(name) else -1
    position = number if 0 <= number < len(options) else None
    return position, options.index(name) if name in options else None


def reading_of(tables: Sequence[Table], columns: Columns) -> tuple[Reading | None, str | None]:
    """Return how all labels are read, and a line that says so; None if no label can be read in two ways.

    Raises: DataError if a label can be read in two ways, and both readings or neither fit the whole column.
    """
    doubtful, fits = None, {"position": True, "text": True}
    for table in tables:
        for number, record in enumerate(table.records):
            place = table.place(number)
            options = options_of(option_cells(record, columns.options), place)
            position, text = indices(record.get(columns.label), options, place)
            fits["position"] &= position is not None
            fits["text"] &= text is not None
            if position is not None and text is not None and position != text:
                doubtful = doubtful or (place, name_of(record.get(columns.label), place), options)
    if doubtful is None:
        return None, None
    place, name, options = doubtful
    if not any(fits.values()):
        raise DataError(
            f"{place}: label {name!r} may be the position of {options[int(name)]!r} (the first option is 0) or the "
            f"option {name!r} itself, and neither reading gives every row an option; correct the labels of column "
            f"{columns.label!r}"
        )
    if fits["position"] == fits["text"]:
        raise DataError(
            f"{place}: label {name!r} may be the position of {options[int(name)]!r} (the first option is 0) or the "
            f"option {name!r} itself, and the other rows do not decide it; write the options so that none is a number "
            "below their count, (1) for 1 for example"
        )
    found: Reading = "position" if fits["position"] else "text"
    said = "positions of the right option, from 0" if found == "position" else "the texts of the right options"
    return found, f"the labels in column {columns.label!r} are read as {said}, since only so all rows have one"


def option_index(value: object, options: Sequence[str], place: str, reading: Reading | None) -> int:
    """Return the index of the right option. Raises: DataError for a label that names none."""
    position, text = indices(value, options, place)
    result = position if reading == "position" else text if reading == "text" or text is not None else position
    if result is None:
        raise DataError(
            f"{place}: label {name_of(value, place)!r} is neither one of the row's options {list(options)} nor a "
            f"number from 0 to {len(options) - 1}; correct it"
        )
    return result
