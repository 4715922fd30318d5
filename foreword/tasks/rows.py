"""Turn the records of any source into rows: named texts, a label and where the row came from."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, final

from foreword.errors import ConfigError, DataError
from foreword.tasks.cells import (
    DIGITS,
    first_twice,
    is_missing,
    name_of,
    options_of,
    plain,
    targets_of,
    text_list,
    text_of,
    unlabelled,
)
from foreword.tasks.guess_fields import ColumnSample, answer_text, gives_away, guess_texts, sample_of, warning

UNLABELLED = (-1, "-1")  # what published test sets without labels hold
TARGETS = ("targets", "output", "answer")  # columns of answers in text, where there is none of labels
REASONING = "reasoning"  # the column of worked solutions


OptionIndex = Callable[[Any, Sequence[str], str], int]  # a label, the row's options and its place


@final
@dataclass(frozen=True)
class Row:
    """Hold one example. `label` is an index into the task's labels, or into the row's own `options` if it has them.

    If answers are texts, the label is None and `targets` are those accepted, the first of them canonical. `reasoning`
    is a worked solution, for demonstrations; it is not part of the question to the model.
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
        """Return the texts and options as canonical JSON; equal texts fall into one split, whatever their label."""
        return json.dumps([dict(self.fields), list(self.options)], ensure_ascii=False, sort_keys=True)


def label_of(row: Row, why: str = "Training and measuring need one in every row.") -> int:
    """Return the row's label. Raises: DataError if there is none; `why` says in its message what needs a label."""
    if row.label is None:
        raise unlabelled(row.where, why)
    return row.label


def require_answers(rows: Sequence[Row], why: str = "Label the row, or leave it out, to measure the others.") -> None:
    """Check that every row has a label or a target. Raises: DataError if not; `why` says in its message what to do."""
    for row in rows:
        if row.label is None and not row.targets:
            raise unlabelled(row.where, why)


@final
@dataclass(frozen=True)
class Table:
    """Hold one split's records. `where` names the source; `names` are the label names if labels are stored as numbers.

    `numbers` are the records' row numbers in the source, from 1, where they are not 1, 2, 3. `textual` says that every
    cell is text, as in CSV, which has neither numbers nor lists.
    """

    records: tuple[Mapping[str, Any], ...]
    where: str
    names: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None
    textual: bool = False

    def place(self, index: int) -> str:
        return f"{self.where}, row {self.numbers[index] if self.numbers else index + 1}"

    def pick(self, indices: Sequence[int]) -> "Table":
        numbers = tuple(self.numbers[i] if self.numbers else i + 1 for i in indices)
        return Table(tuple(self.records[i] for i in indices), self.where, self.names, numbers, self.textual)

    def unlabelled(self, label: str) -> bool:
        """Return whether no record has a label, as in test sets published without labels."""
        cells = (plain(record.get(label), f"{self.place(i)}: {label!r}") for i, record in enumerate(self.records))
        return all(is_missing(cell) or cell == [] or (type(cell) is not list and cell in UNLABELLED) for cell in cells)

    def columns(self) -> list[str]:
        """Return the columns in the order in which records show them."""
        return list(dict.fromkeys(name for record in self.records for name in record))


@final
@dataclass(frozen=True)
class Columns:
    """Hold the columns to read: the texts, the label, and the column or columns of each row's own options.

    With `targets` the column `label` holds the accepted answers as text, one or a list. `reasoning` may be absent.
    `lines` tell what was guessed, and which text gives the answer away.
    """

    text: tuple[str, ...]
    label: str
    options: tuple[str, ...] = ()
    targets: bool = False
    reasoning: str | None = None
    lines: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class WantedColumns:
    """Hold the columns asked for. `targets` names the column of answers in text; None: found if there are no labels."""

    text: str | Sequence[str] | None = None
    label: str = "label"
    options: str | Sequence[str] | None = None
    targets: str | None = None


def target_column(tables: Sequence[Table], wanted: WantedColumns) -> str | None:
    """Return the column of answers in text: that asked for, or the first of TARGETS if there is none of labels."""
    present = [name for table in tables for name in table.columns()]
    if wanted.targets is not None or wanted.options is not None or wanted.label in present or wanted.label != "label":
        return wanted.targets
    return next((name for name in TARGETS if name in present), None)


def choose_columns(tables: Sequence[Table], wanted: WantedColumns) -> Columns:
    """Check the columns asked for; without `text` take "text", or text_a and text_b, or guess (tasks/guess_fields)."""
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
    plainly = named or _usual_texts(present, {label, *chosen})
    sample, lines = _sample(tables, label, chosen, targets is not None), []
    if plainly:
        names = plainly
    else:
        taken = {label, *chosen, *([reasoning] if reasoning else [])}
        names, lines = guess_texts(table.where, [name for name in present if name not in taken], sample)
    if not names:
        raise DataError(f"{table.where} has no column of text (columns: {', '.join(present)}); name one with text=")
    for name in names:
        _require(name, present, table.where, "text")
    if len(set(names)) < len(names):
        raise ConfigError(f"text names {first_twice(names)!r} twice; name each column once")
    for name in plainly:
        values = sample.texts(name)
        reason = gives_away(values, sample) if values is not None else None
        lines += [warning(name, reason)] if reason else []
    if targets is not None and any(t.textual and any(text_list(r.get(label)) for r in t.records) for t in tables):
        lines.append(
            f"JSON lists in column {label!r} are read as alternatives, since CSV has no lists; a list that is one "
            "answer stands as text in JSONL"
        )
    return Columns(names, label, chosen, targets is not None, reasoning, tuple(lines))


def _sample(tables: Sequence[Table], label: str, options: tuple[str, ...], targets: bool) -> ColumnSample:
    """Sample records of all tables with their answers: the label, of options also the right one's text, or a target."""
    names = next((table.names for table in tables if table.names), None)

    def answers(record: Mapping[str, Any]) -> list[str] | None:
        text = answer_text(record.get(label))
        if text is None:
            return None
        number = int(text) if DIGITS.fullmatch(text) else -1
        if options:
            right = option_cells(record, options)
            right = right if isinstance(right, list | tuple) else text_list(right) or ()
            return [text, (answer_text(right[number]) or text) if 0 <= number < len(right) else text]
        return [names[number] if names and 0 <= number < len(names) else text]

    records = [record for table in tables for record in table.records]
    return sample_of(records, answers, names=not (options or targets))


def to_rows(
    table: Table, columns: Columns, labels: Sequence[str] | None, index_of: OptionIndex | None = None
) -> tuple[Row, ...]:
    """Build the rows of one table.

    `labels` are the names allowed; None if each row has its own options, of which `index_of` finds the right one.
    """
    rows = []
    number_of = {name: i for i, name in enumerate(labels or ())}
    for i, record in enumerate(table.records):
        place = table.place(i)
        fields = {name: text_of(record.get(name), f"{place}: field {name!r}") for name in columns.text}
        options = options_of(option_cells(record, columns.options), place) if columns.options else ()
        reasoning = _reasoning(record, columns.reasoning, place)
        value = record.get(columns.label)
        if columns.targets:
            targets = targets_of(value, columns.label, place, textual=table.textual)
            rows.append(Row(fields, None, (), place, targets, reasoning))
            continue
        if columns.options:
            assert index_of is not None, "rows with options come with a rule for their labels"
            label = index_of(value, options, place)
        else:
            name = name_of(value, place, table.names)
            if name not in number_of:
                known = ", ".join(map(repr, number_of))
                raise DataError(
                    f"{place}: label {name!r} is not one of the training rows' labels ({known}); "
                    "correct it or add training rows with it"
                )
            label = number_of[name]
        rows.append(Row(fields, label, options, place, (), reasoning))
    return tuple(rows)


def merge_sources(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Merge rows with the same texts into one with the targets of all, in order: a source with several references."""
    results: dict[str, Row] = {}
    for row in rows:
        first = results.get(row.text())
        results[row.text()] = row if first is None else replace(first, targets=(*first.targets, *row.targets))
    return tuple(replace(row, targets=tuple(dict.fromkeys(row.targets))) for row in results.values())


def label_names(tables: Sequence[Table], column: str) -> tuple[str, ...]:
    """Return the distinct label names: sorted, by number if all are numbers; as stored if the source names them."""
    if tables and tables[0].names is not None:
        return tables[0].names
    seen = {
        name_of(record.get(column), table.place(i), table.names)
        for table in tables
        for i, record in enumerate(table.records)
    }
    if all(map(DIGITS.fullmatch, seen)):
        return tuple(sorted(seen, key=lambda name: (int(name), name)))
    return tuple(sorted(seen))


def option_cells(record: Mapping[str, Any], columns: tuple[str, ...]) -> Any:
    """Return the cells that hold a row's options: the cell of the one column, or a list with a cell of each column."""
    cells = [record.get(name) for name in columns]
    return cells if len(cells) > 1 else cells[0]


def _require(name: str, present: Sequence[str], where: str, use: str) -> None:
    if name not in present:
        raise DataError(
            f"{where} has no column {name!r} (columns: {', '.join(present)}); name the right one with {use}="
        )


def _usual_texts(present: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    if "text" in present and "text" not in taken:
        return ("text",)
    return ("text_a", "text_b") if "text_a" in present and "text_b" in present else ()


def _reasoning(record: Mapping[str, Any], column: str | None, place: str) -> str:
    if column is None or is_missing(plain(record.get(column), f"{place}: {column!r}")):
        return ""
    return text_of(record.get(column), f"{place}: {column!r}").strip()
