"""A row: named texts, a label and where it came from. Turns the records of any source into rows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, final

from foreword.errors import DataError

UNLABELLED = (None, "", -1, "-1")  # what published test sets without labels hold
TARGETS = ("targets", "output", "answer")  # columns of answers in text, where there is none of labels
REASONING = "reasoning"  # the column of worked solutions


@final
@dataclass(frozen=True)
class Row:
    """One example. `label` is an index into the task's labels, or into the row's own `options` where it has them.

    Where answers are texts the label is None and `targets` are those accepted, the first of them canonical. `reasoning`
    is a worked solution, for demonstrations; it is no part of what the model is asked.
    """

    fields: Mapping[str, str]
    label: int | None
    options: tuple[str, ...] = ()
    where: str = ""
    targets: tuple[str, ...] = ()
    reasoning: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))

    def text(self) -> str:
        """The texts and options alone, canonical; equal texts fall into the same split, whatever their label."""
        return json.dumps([dict(self.fields), list(self.options)], ensure_ascii=False, sort_keys=True)


@final
@dataclass(frozen=True)
class Table:
    """Records of one split. `where` names the source; `names` are the label names where labels are stored as numbers.

    `numbers` are the records' row numbers in the source, from 1, where they are not 1, 2, 3.
    """

    records: tuple[Mapping[str, Any], ...]
    where: str
    names: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None

    def place(self, index: int) -> str:
        return f"{self.where}, row {self.numbers[index] if self.numbers else index + 1}"

    def pick(self, indices: Sequence[int]) -> "Table":
        numbers = tuple(self.numbers[i] if self.numbers else i + 1 for i in indices)
        return Table(tuple(self.records[i] for i in indices), self.where, self.names, numbers)

    def unlabelled(self, label: str) -> bool:
        """Whether no record has a label, as in published test sets that keep theirs back."""
        return all(record.get(label) in UNLABELLED or record.get(label) == [] for record in self.records)

    def columns(self) -> list[str]:
        """Columns in the order in which records show them."""
        return list(dict.fromkeys(name for record in self.records for name in record))


@final
@dataclass(frozen=True)
class Columns:
    """Which columns are read: the texts, the label, and the column or columns of each row's own options.

    With `targets` the column `label` holds the accepted answers as text, one or a list. `reasoning` may be absent.
    """

    text: tuple[str, ...]
    label: str
    options: tuple[str, ...] = ()
    targets: bool = False
    reasoning: str | None = None


@final
@dataclass(frozen=True)
class Wanted:
    """The columns asked for. `targets` names the column of answers in text; None: found where there are no labels."""

    text: str | Sequence[str] | None = None
    label: str = "label"
    options: str | Sequence[str] | None = None
    targets: str | None = None


def target_column(tables: Sequence[Table], wanted: Wanted) -> str | None:
    """The column of answers in text: the one asked for, or without a column of labels the first of TARGETS there is."""
    present = [name for table in tables for name in table.columns()]
    if wanted.targets is not None or wanted.options is not None or wanted.label in present or wanted.label != "label":
        return wanted.targets
    return next((name for name in TARGETS if name in present), None)


def choose_columns(tables: Sequence[Table], wanted: Wanted) -> Columns:
    """Check the columns asked for; without `text` take "text", or text_a and text_b, or every column of strings."""
    table = next((t for t in tables if t.records), None)
    if table is None:
        raise DataError(f"{tables[0].where if tables else 'the data'} holds no rows; give at least two labelled rows")
    present = table.columns()
    text, options = wanted.text, wanted.options
    chosen = () if options is None else ((options,) if isinstance(options, str) else tuple(options))
    targets = target_column(tables, wanted)
    if targets is not None and chosen:
        raise DataError(
            f"{table.where}: answers in text (column {targets!r}) and options were both asked for; give one"
        )
    label = wanted.label if targets is None else targets
    for name in (label, *chosen):
        use = "options" if name != label else "label" if targets is None else "targets"
        _require(name, present, table.where, use)
    named = (text,) if isinstance(text, str) else tuple(text or ())
    reasoning = REASONING if REASONING in present and REASONING not in named else None
    if text is None:
        names = _guess_text(table, present, {label, *chosen, *([reasoning] if reasoning else [])})
    else:
        names = named
    if not names:
        raise DataError(f"{table.where} has no column of text (columns: {', '.join(present)}); name one with text=")
    for name in names:
        _require(name, present, table.where, "text")
    return Columns(names, label, chosen, targets is not None, reasoning)


def to_rows(table: Table, columns: Columns, labels: Sequence[str] | None) -> tuple[Row, ...]:
    """Rows of one table. `labels` are the names allowed; None where each row has its own options."""
    rows = []
    index_of = {name: i for i, name in enumerate(labels or ())}
    for i, record in enumerate(table.records):
        place = table.place(i)
        fields = {name: _text(record, name, place) for name in columns.text}
        options = _options(record, columns.options, place)
        reasoning = str(record.get(columns.reasoning) or "").strip() if columns.reasoning else ""
        value = record.get(columns.label)
        if columns.targets:
            rows.append(Row(fields, None, (), place, _targets(value, columns.label, place), reasoning))
            continue
        if columns.options:
            label = _option_index(value, options, place)
        else:
            name = label_name(value, table, place)
            if name not in index_of:
                known = ", ".join(map(repr, index_of))
                raise DataError(
                    f"{place}: label {name!r} is not one of the training rows' labels ({known}); "
                    "correct it or add training rows with it"
                )
            label = index_of[name]
        rows.append(Row(fields, label, options, place, (), reasoning))
    return tuple(rows)


def merge_sources(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows with the same texts as one, with the targets of all in order: a source with several references."""
    found: dict[str, Row] = {}
    for row in rows:
        first = found.get(row.text())
        found[row.text()] = row if first is None else replace(first, targets=(*first.targets, *row.targets))
    return tuple(replace(row, targets=tuple(dict.fromkeys(row.targets))) for row in found.values())


def label_names(tables: Sequence[Table], column: str) -> tuple[str, ...]:
    """The distinct label names: sorted, by number where all are numbers; as stored where the source names them."""
    if tables and tables[0].names is not None:
        return tables[0].names
    seen = {
        label_name(record.get(column), table, table.place(i))
        for table in tables
        for i, record in enumerate(table.records)
    }
    if all(name.lstrip("-").isdigit() for name in seen):
        return tuple(sorted(seen, key=int))
    return tuple(sorted(seen))


def label_name(value: Any, table: Table, place: str) -> str:
    """A label as its name: 1 and "1" and 1.0 are one label; numbers become names where the source gives names."""
    if _missing(value):
        raise DataError(f"{place} has no label; give one or leave the row out")
    if isinstance(value, (bool, str)):
        name = str(value).strip()
    elif isinstance(value, (int, float)) or type(value).__module__ == "numpy":
        number = float(value)
        name = str(int(number)) if number == int(number) else str(number)
        if table.names is not None:
            if not 0 <= int(number) < len(table.names):
                raise DataError(f"{place}: label {name} is outside of 0 to {len(table.names) - 1}; correct it")
            return table.names[int(number)]
    else:
        raise DataError(f"{place}: the label is {type(value).__name__} ({value!r}); give text or a number")
    return name


def _missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _require(name: str, present: Sequence[str], where: str, use: str) -> None:
    if name not in present:
        raise DataError(
            f"{where} has no column {name!r} (columns: {', '.join(present)}); name the right one with {use}="
        )


def _guess_text(table: Table, present: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    if "text" in present and "text" not in taken:
        return ("text",)
    if "text_a" in present and "text_b" in present:
        return ("text_a", "text_b")
    first = table.records[0]
    return tuple(n for n in present if n not in taken and isinstance(first.get(n), str))


def _text(record: Mapping[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if _missing(value):
        raise DataError(f"{place}: field {name!r} is empty; give it text or leave the row out")
    if isinstance(value, (list, dict)):
        raise DataError(f"{place}: field {name!r} is a {type(value).__name__}; give text")
    return str(value)


def _options(record: Mapping[str, Any], columns: tuple[str, ...], place: str) -> tuple[str, ...]:
    if not columns:
        return ()
    cells = [record.get(name) for name in columns]
    value: Any = cells if len(cells) > 1 else cells[0]
    if isinstance(value, str):
        try:
            value = json.loads(value)  # CSV has no lists: a JSON list in the cell
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise DataError(f"{place}: the options in {', '.join(columns)} must be a list of two or more texts")
    options = tuple("" if o is None else str(o).strip() for o in value)
    if not all(options) or len(set(options)) < len(options):
        raise DataError(f"{place}: options must be different and not empty, but are {list(options)}")
    return options


def _targets(value: Any, column: str, place: str) -> tuple[str, ...]:
    """The accepted answers: one text or number, or a list of them."""
    given = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)  # CSV has no lists: a JSON list in the cell
        except json.JSONDecodeError:
            parsed = None
        given = parsed if isinstance(parsed, list) and all(isinstance(t, str) for t in parsed) else given
    if not given or any(_missing(one) or not isinstance(one, (str, int, float)) for one in given):
        shown = json.dumps(value, default=str, ensure_ascii=False)
        raise DataError(f"{place}: {column!r} is {shown}; give the answer as text, or a list of answers")
    return tuple(dict.fromkeys(str(one).strip() for one in given))


def _option_index(value: Any, options: tuple[str, ...], place: str) -> int:
    if isinstance(value, str) and value.strip() in options:
        return options.index(value.strip())
    number = str(value)
    if number.isdigit() and int(number) < len(options):
        return int(number)
    raise DataError(
        f"{place}: label {value!r} is neither one of the row's options {list(options)} nor a number from 0 to "
        f"{len(options) - 1}; correct it"
    )
