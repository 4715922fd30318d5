"""Read tables of records from Python objects, from files, from folders and from the `datasets` library."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foreword.core.text import parse_json
from foreword.errors import ConfigError, DataError
from foreword.tasks.cells import column_names, named_cells, refuse_twice
from foreword.tasks.rows import Table

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "dev", "valid", "val", "development"),
    "test": ("test",),
}


def table_of(source: Any, where: str, label: str) -> Table:
    """Build a table from a list of dicts, a data set, a DataFrame or a pyarrow table. No library is imported for it."""
    records = records_of(source, where)
    scalar = isinstance(source, str | bytes | Mapping) or getattr(source, "ndim", 1) == 0
    if records is None and isinstance(source, Iterable) and not scalar:
        records = source
    if records is None:
        raise DataError(
            f"{where} is {type(source).__name__}; give a list of dicts, a datasets.Dataset, a DataFrame or a "
            "pyarrow.Table"
        )
    results = []
    for i, record in enumerate(records):
        cells = named_cells(record, f"{where}, row {i + 1}")
        if cells is None:
            raise DataError(f"{where}, row {i + 1} is {type(record).__name__}; give a dict of columns")
        results.append(column_names(cells, f"{where}, row {i + 1}"))
    return Table(tuple(results), where, _stored_names(source, label))


def records_of(source: Any, where: str) -> Iterable[Mapping[Any, Any]] | None:
    """Return the rows of a DataFrame, a pyarrow table or a data set, streamed or not; None for anything else.

    Raises: DataError for a table that has a column twice, since one of the two would be lost.
    """
    pandas, pyarrow, datasets = (sys.modules.get(name) for name in ("pandas", "pyarrow", "datasets"))
    if pandas is not None and isinstance(source, pandas.DataFrame):
        refuse_twice(list(source.columns), where)
        return source.to_dict("records")
    if pyarrow is not None and isinstance(source, pyarrow.Table | pyarrow.RecordBatch):
        try:
            names, rows = source.schema.names, source.to_pylist()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, dates out of Python's range
            raise DataError(
                f"{where} cannot be read ({_first_line(error)}); write its names and cells as text"
            ) from error
        refuse_twice(names, where)
        return rows
    if datasets is not None and isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return iter(source)
    return None


def _stored_names(source: Any, label: str) -> tuple[str, ...] | None:
    """Return the names of labels that a data set stores as numbers; None if it has none."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return None
    features: Mapping[str, Any] = source.features or {}
    feature = features.get(label)
    return tuple(feature.names) if feature is not None and isinstance(feature, datasets.ClassLabel) else None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def split_mapping(source: Mapping[str, Any]) -> dict[str, Any]:
    """Map the usual names of splits, in a DatasetDict or a dict of splits, to train, validation and test."""
    found = {split: source[name] for split, names in SPLIT_NAMES.items() for name in reversed(names) if name in source}
    if not found:
        raise DataError(f"the splits are {', '.join(map(str, source))}; give one of train, validation, test")
    return found


def read_file(path: Path) -> Table:
    """Read the records of a .jsonl, .json, .csv, .tsv or .parquet file."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is of no known kind; give a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        return Table(_read_parquet(path), path.name)
    text = read_text(path)
    if path.suffix == ".jsonl":
        return _parse_lines(text, path)
    if path.suffix == ".json":
        return Table(_parse_list(text, path), path.name)
    return Table(_parse_csv(text, path), path.name, textual=True)


def read_text(path: Path) -> str:
    """Read a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark. Raises: DataError that names the byte."""
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(4))
        return path.read_text(encoding=encoding)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error
    except UnicodeDecodeError as error:
        marked = "" if error.encoding.startswith("utf-8") else f", nor the {error.encoding} that its mark says"
        raise DataError(f"{path} is not UTF-8 text{marked} (byte {error.start}); save it as UTF-8") from error


def encoding_of(head: bytes) -> str:
    """Return the encoding that the first four bytes of a text show: UTF-8, unless a byte-order mark says otherwise."""
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    return "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def read_folder(folder: Path) -> dict[str, Table]:
    """Read train, validation and test of a folder; return {"all": table} if the folder does not split its rows.

    `splits.json` next to `all.jsonl` either lists the row numbers of each split, or keeps whole classes apart for
    few-shot episodes; the latter is no split of rows.
    """
    tables = {}
    for split, names in SPLIT_NAMES.items():
        results = [folder / f"{n}{s}" for n in names for s in SUFFIXES if (folder / f"{n}{s}").is_file()]
        if len(results) > 1:
            raise DataError(f"{folder} has {results[0].name} and {results[1].name}, both the {split} split; keep one")
        if results:
            tables[split] = read_file(results[0])
    if tables:
        return tables
    whole = next((folder / f"all{s}" for s in SUFFIXES if (folder / f"all{s}").is_file()), None)
    if whole is None:
        raise DataError(f"{folder} has neither train.jsonl (or .json, .csv, .tsv, .parquet) nor all.jsonl; add one")
    table, rule = read_file(whole), folder / "splits.json"
    if not rule.is_file():
        return {"all": table}
    splits = _parse_splits(rule)
    if splits.get("kind") != "rows":
        return {"all": table}
    return {split: _pick(table, splits.get(split, []), rule, split) for split in SPLIT_NAMES if splits.get(split)}


def read_hub(name: str, label: str) -> dict[str, Table]:
    """Read the splits of a hub data set, by the `datasets` library and its cache. `name` is owner/name[:config]."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"hf:{name} needs the datasets library; pip install 'foreword[data]'") from error
    path, _, config = name.partition(":")
    try:
        loaded: Any = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library raises its own, the hub's and the network's errors alike
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"hf:{name} cannot be loaded ({reason}); check owner/name[:config] and the network") from error
    return {split: table_of(rows, f"hf:{name} {split}", label) for split, rows in split_mapping(dict(loaded)).items()}


def _parse_lines(text: str, path: Path) -> Table:
    records, numbers = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, once=True)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"{path}, line {number} is not JSON ({reason}); give one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is a JSON {type(record).__name__}; give one object a line")
        records.append(column_names(record, f"{path}, line {number}"))
        numbers.append(number)
    return Table(tuple(records), path.name, numbers=tuple(numbers))


def _parse_list(text: str, path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        records = parse_json(text, once=True)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno} is not JSON ({error.msg}); give a list of objects") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); give a list of objects") from error
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise DataError(f"{path} is not a JSON list of objects; give a list, or one object a line in a .jsonl file")
    return tuple(column_names(record, f"{path}, row {i}") for i, record in enumerate(records, start=1))


def _parse_csv(text: str, path: Path) -> tuple[Mapping[str, Any], ...]:
    separator = "\t" if path.suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    records = []
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may be as long as the file
    try:
        refuse_twice(list(reader.fieldnames or ()), f"{path}, line 1")
        for record in reader:
            if None in record or None in record.values():
                raise DataError(
                    f"{path}, line {reader.line_num} has not as many columns as the first line "
                    f"({len(reader.fieldnames or ())}); quote texts that hold the separator"
                )
            records.append(record)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1} is not CSV ({error}); check the quotes") from error
    return tuple(records)


def _read_parquet(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(f"{path} needs pyarrow; pip install 'foreword[data]'") from error
    try:
        table = parquet.read_table(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({_first_line(error)}); check the path and its permissions, or write it again"
        ) from error
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file ({_first_line(error)}); write it again") from error
    records = records_of(table, str(path)) or ()
    return tuple(column_names(record, f"{path}, row {i}") for i, record in enumerate(records, start=1))


def _parse_splits(path: Path) -> dict[str, Any]:
    try:
        splits = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); give JSON with kind, train, validation and test") from error
    if not isinstance(splits, dict) or splits.get("kind") not in ("rows", "classes"):
        raise DataError(f'{path} has no "kind": "rows" or "classes"; add it')
    return splits


def _pick(table: Table, numbers: list[int], rule: Path, split: str) -> Table:
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < len(table.records) for n in numbers):
        raise DataError(f"{rule}: {split} names rows outside of 0 to {len(table.records) - 1}; correct it")
    return table.pick(numbers)
