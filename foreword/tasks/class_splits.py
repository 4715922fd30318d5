"""Keep classes apart for few-shot learning: read named splits, and refuse texts or classes in two parts."""

import json
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from foreword.core.text import parse_json
from foreword.errors import ConfigError, DataError
from foreword.tasks.read import read_task
from foreword.tasks.rows import Row, label_of
from foreword.tasks.task import Task

SPLITS = ("train", "validation", "test")
OWN = "splits.json"
_NAMED = Path(__file__).parents[1] / "data" / "splits"


@cache
def named_splits() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Return the published splits by name, then by data set: the classes of train, validation and test."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["data"] for path in sorted(_NAMED.glob("*.json"))}


def read_classes(source: str | Path, split: str | None = None, **how: Any) -> Task:
    """Read all rows at `source` as a task whose splits hold different classes; `how` goes to `read_task`.

    `split` names a published split, or a JSON file with the classes of train, validation and test; by default the
    folder's own `splits.json`.

    Raises: ConfigError for a split that does not exist; DataError for one that does not fit the rows, and for a text in
    two parts.
    """
    whole = read_task(source, **how)
    parts = _parts(Path(source), split, whole.name)
    rows = [row for name in SPLITS for row in whole.rows(name)]
    where = {name: part for part in SPLITS for name in parts[part]}
    missing = sorted(set(where) - set(whole.labels))
    if missing or len(where) < sum(map(len, parts.values())):
        fault = f"has no class {missing[0]!r}" if missing else "has a class in two parts"
        raise DataError(f"{whole.name} {fault} of the split {split or OWN}; correct the split or its names")
    results = {part: tuple(r for r in rows if where.get(whole.labels[_label(r)]) == part) for part in SPLITS}
    kept = [name for name in whole.labels if name in where]
    note = f"classes kept apart as in {split or OWN}: {', '.join(f'{len(parts[p])} {p}' for p in SPLITS)}"
    order = {whole.labels.index(name): number for number, name in enumerate(kept)}
    origin = None if whole.origin is None else {**whole.origin, "classes": split or OWN}
    words = {k: v for k, v in (whole.label_words or {}).items() if k in where}
    task = whole.with_(
        labels=tuple(kept),
        label_words=words or None,
        notes=(*whole.guesses, note),
        **{p: tuple(Row(r.fields, order[_label(r)], (), r.where) for r in results[p]) for p in SPLITS},
    )
    refuse_leakage([task])
    return task.with_(origin=origin)


def has_classes(source: str | Path) -> bool:
    """Return whether a folder has a `splits.json` that keeps classes apart."""
    file = Path(source) / OWN
    if not file.is_file():
        return False
    try:
        return parse_json(file.read_text(encoding="utf-8-sig")).get("kind") == "classes"
    except (OSError, ValueError, AttributeError):
        return False  # reading the task tells what is wrong


def apart(task: Task) -> bool:
    """Return whether the training rows and the validation or test rows have no class in common."""
    classes = {part: {row.label for row in task.rows(part)} for part in SPLITS}
    others = classes["validation"] | classes["test"]
    return bool(others) and not classes["train"] & others


def refuse_leakage(tasks: Sequence[Task]) -> None:
    """Refuse a text in two parts; only letters and digits are compared. Raises: DataError that names the two rows."""
    seen: dict[str, tuple[str, Task, Row]] = {}
    for part in SPLITS:
        for task in tasks:
            for row in task.rows(part):
                other, first, there = seen.setdefault(plain(row), (part, task, row))
                if other != part:
                    raise DataError(
                        f"{task.name}: {row.where or 'a row'} of {part} has the text of {first.name}: "
                        f"{there.where or 'a row'} of {other}; leave one of the two out, since what is tested must not "
                        "have been seen"
                    )


def plain(row: Row) -> str:
    """Return the texts of a row without case, accents, spaces and punctuation; unchanged if nothing would be left."""
    whole = "\n".join(row.fields[name] for name in sorted(row.fields))
    letters = [c for c in unicodedata.normalize("NFKD", whole).casefold() if c.isalnum()]
    return "".join(letters) or whole


def _label(row: Row) -> int:
    return label_of(row, "Episodes need one in every row.")


def _parts(source: Path, split: str | None, name: str) -> dict[str, list[str]]:
    published = named_splits()
    if split in published:
        if name not in published[split]:
            raise ConfigError(f"{split} has no split of {name!r}; it has {', '.join(published[split])}")
        return published[split][name]
    file = source / OWN if split in (None, OWN) else Path(split)
    if not file.is_file():
        raise ConfigError(
            f"there is no split of classes {str(file)!r}; give a JSON file with train, validation and test, or one of "
            f"{', '.join(published)}"
        )
    try:
        said = parse_json(file.read_text(encoding="utf-8-sig"))
        results = {part: [str(name) for name in said[part]] for part in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error!r}); give lists of classes: train, validation, test") from error
    if said.get("kind", "classes") != "classes":
        raise DataError(f"{file} is a split of {said['kind']}; episodes need one of classes")
    return results
