"""Arrange tables as the three splits of a task, and find the names of its labels."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from foreword.errors import ConfigError, DataError
from foreword.tasks.cells import options_of, text_of
from foreword.tasks.rows import Columns, Table, WantedColumns, choose_columns, label_names, option_cells, target_column
from foreword.tasks.splits import CARVE_RULE, SPLIT_RULE, carve, hashed_split


def where_of(name: str, split: str) -> str:
    return name if split == "all" else f"{name} ({split})"


def arrange(
    tables: Mapping[str, Table], wanted: WantedColumns, seed: int
) -> tuple[dict[str, Table], Columns, tuple[str, ...]]:
    """Return the three splits, made as `Task.__init__` says, the columns that are read, and notes on what was done."""
    splits, notes = dict(tables), []
    label = target_column([*splits.values()], wanted) or wanted.label
    for split in [s for s in splits if s in ("validation", "test")]:
        if splits[split].records and splits[split].unlabelled(label):
            notes.append(f"the {split} rows have no labels and are left out")
            del splits[split]
    if not splits:
        raise DataError(f"{next(iter(tables.values())).where} has no labels in column {label!r}; give labelled rows")
    columns = choose_columns([*splits.values()], wanted)

    def content(table: Table, item: tuple[int, Mapping[str, Any]]) -> str:
        number, record = item
        texts = [text_of(record.get(name), f"{table.place(number)}: field {name!r}") for name in columns.text]
        cells: list[str] = []
        if columns.options:
            options = options_of(option_cells(record, columns.options), table.place(number))  # refuses what has no text
            if len(columns.options) == 1:  # whatever holds the list: JSON in CSV, an array in Parquet
                cells = [str(list(options))]
            else:
                cells = [str(record.get(name)) for name in columns.options]
        return json.dumps([*texts, *cells], ensure_ascii=False)

    if set(splits) == {"train"}:
        splits = {"all": splits["train"]}
    if "all" in splits:
        table = splits["all"]
        parts = hashed_split([*enumerate(table.records)], partial(content, table), seed)
        notes.append(f"split by {SPLIT_RULE} (seed {seed})")
        names = ("train", "validation", "test")
        picked = {name: table.pick([i for i, _ in part]) for name, part in zip(names, parts, strict=True)}
        return picked, columns, tuple(notes)
    if "train" not in splits:
        return splits, columns, (*notes, "there are no training rows")
    if "test" not in splits:
        splits["test"] = splits.pop("validation")
        notes.append("there are no test rows, so the validation rows are the test")
    if "validation" not in splits:
        table = splits["train"]
        train, validation = carve([*enumerate(table.records)], partial(content, table))
        splits["train"] = table.pick([i for i, _ in train])
        splits["validation"] = table.pick([i for i, _ in validation])
        notes.append(CARVE_RULE)
    return splits, columns, tuple(notes)


def labels_of(
    splits: Mapping[str, Table], tables: Mapping[str, Table], columns: Columns, given: Sequence[str] | None, name: str
) -> tuple[str, ...]:
    """Return label names: those given, else those of the training rows (before validation rows were carved out)."""
    if columns.options or columns.targets:
        return ()
    if given is not None:
        names = tuple(given)
        if len(set(names)) < len(names):
            raise ConfigError(f"the labels given repeat: {', '.join(names)}; give each once")
    else:
        source = tables.get("all") or tables.get("train")
        names = label_names([source] if source is not None else [*splits.values()], columns.label)
    if len(names) < 2:
        raise DataError(f"{name} has one label only ({', '.join(names)}); give rows of two labels or more")
    return names
