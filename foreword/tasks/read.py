"""Read a task from where it is: a folder, a file, the hub (hf:owner/name) or an embedded task (builtin:name)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.errors import ConfigError, DataError
from foreword.tasks.builtin import BUILTIN
from foreword.tasks.known import KNOWN
from foreword.tasks.rows import Table
from foreword.tasks.sources import read_file, read_folder, read_hub
from foreword.tasks.task import Task


def read_task(
    source: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    label: str = "label",
    options: str | Sequence[str] | None = None,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    seed: int = 0,
    template: Any = None,
    label_words: Mapping[str, str | Sequence[str]] | None = None,
) -> Task:
    """The task at `source`: DIR, FILE, hf:owner/name[:config] or builtin:name.

    DIR holds train, validation and test as .jsonl, .json, .csv, .tsv or .parquet, or all.jsonl with splits.json.
    `split` reads one file whole as that split instead of splitting it. `labels` fixes the labels and their order.
    """
    place = str(source)
    if place.startswith("builtin:"):
        return _embedded(place.removeprefix("builtin:"))
    tables, found = _tables(place, label)
    if split is not None:
        if split not in ("train", "validation", "test"):
            raise ConfigError(f"there is no split {split!r}; give train, validation or test")
        if "all" in tables:
            tables = {split: tables["all"]}
    known = KNOWN.get(found)
    rows: dict[str, Any] = {"rows": tables["all"]} if "all" in tables else {**tables}
    task = Task(
        **rows,
        text=text,
        label=label,
        options=options,
        name=name or found,
        labels=labels,
        seed=seed,
        template=template,
        label_words=label_words,
    )
    if known is None or any(f"{{{f}" not in known.masked for f in task.fields):
        return task
    words = {label: known.words[label] for label in task.labels if label in known.words}
    return task.with_(
        template=task.template if template is not None else known.templates(),
        label_words=task.label_words if label_words is not None else words,
    )


def _tables(place: str, label: str) -> tuple[dict[str, Table], str]:
    """Tables of the source by split, and the task's name."""
    if place.startswith("hf:"):
        name = place.removeprefix("hf:")
        if not name.partition(":")[0].strip("/"):
            raise ConfigError(f"{place!r} names no data set; give hf:owner/name or hf:owner/name:config")
        return read_hub(name, label), name.replace(":", "/").split("/")[-1]
    path = Path(place).expanduser()
    if path.is_dir():
        return read_folder(path), path.resolve().name
    if path.is_file():
        return {"all": read_file(path)}, path.stem
    near = ", ".join(f"builtin:{name}" for name in BUILTIN)
    raise DataError(f"{place} does not exist; give a folder, a file, hf:owner/name or an embedded task ({near})")


def _embedded(name: str) -> Task:
    if name not in BUILTIN:
        raise ConfigError(f"there is no embedded task {name!r}; there are {', '.join(BUILTIN)}")
    return BUILTIN[name]()
