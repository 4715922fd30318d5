"""The right answer of a row as text."""

from foreword.core.format import Format
from foreword.errors import DataError
from foreword.tasks.rows import Row


def answer_of(form: Format, row: Row) -> str:
    """The canonical target, the option, or the label's first word.

    Raises: DataError for a row without an answer.
    """
    if row.targets:
        return row.targets[0]
    if row.label is None:
        raise DataError(f"{row.where} has no answer; proposals need one in every training row.")
    return row.options[row.label] if row.options else form.words[row.label][0]
