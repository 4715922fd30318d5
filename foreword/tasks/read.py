"""Read a task from where it is: a folder, a file, the hub (hf:), an embedded task (builtin:) or a relation (facts:)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from foreword.core.arguments import checked
from foreword.core.text import parse_json, shown
from foreword.errors import ConfigError, DataError
from foreword.tasks.answer_metrics import GENERATION, NAMES, Metric
from foreword.tasks.builtin import BUILTIN
from foreword.tasks.known_templates import KNOWN, KNOWN_TEXTS
from foreword.tasks.relations import fact_source
from foreword.tasks.rows import Table
from foreword.tasks.slots import SLOTS
from foreword.tasks.sources import SUFFIXES, read_file, read_folder, read_hub
from foreword.tasks.task import Task
from foreword.tasks.text_metric import Case

DESCRIPTION, LISTING = "task.json", "tasks.json"


@checked
def read_task(
    source: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    options: str | Sequence[str] | None = None,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    seed: int = 0,
    template: Any = None,
    label_words: Mapping[str, str | Sequence[str]] | None = None,
    targets: str | None = None,
    metric: Metric | None = None,
    case: Case | None = None,
    slots: str | None = None,
) -> Task:
    """Read the task at `source`: DIR, FILE, hf:owner/name[:config], builtin:name or facts:DIR:RELATION.

    DIR holds train, validation and test as .jsonl, .json, .csv, .tsv or .parquet, or all.jsonl with splits.json.
    `split` reads one file whole as that split instead of splitting it. `labels` fixes the labels and their order.
    Values that are not given are taken from the task's description, if there is one: `task.json` in DIR, or
    `NAME.task.json` beside NAME.jsonl, with any of text, label, options, labels, template, label_words, targets,
    metric, case and slots. The column of labels is `label` unless an argument or the description names another;
    without it a column called targets, output or answer holds answers in text. If `tasks.json` stands beside DIR, it
    gives the metric (instruction induction).
    """
    given = {"text": text, "label": label, "options": options, "labels": labels}
    given |= {"template": template, "label_words": label_words, "targets": targets, "metric": metric}
    given |= {"case": case, "slots": slots}
    origin = {"source": str(source), "name": name, "split": split, "seed": seed or None, **given}
    origin = {key: value for key, value in origin.items() if value is not None}
    place = str(source)
    if place.startswith(("builtin:", "facts:")):
        task = _fixed(place, {**given, "split": split})
        task = task if name is None else task.with_(name=name)
        return task.with_(origin=origin) if place.startswith("builtin:") else task
    described = {**_listed(place), **_description(place)}
    known_texts = KNOWN_TEXTS.get(Path(place).name, {})
    own = metric or described.get("metric")
    described = {**(known_texts if own is None or own in GENERATION else {}), **described}
    said = {key: described.get(key) if value is None else value for key, value in given.items()}
    said["case"] = said["case"] or "kept"
    column: str = said["label"] or "label"
    tables, result = _tables(place, column)
    if split is not None:
        if split not in ("train", "validation", "test"):
            raise ConfigError(f"there is no split {split!r}; give train, validation or test")
        if "all" in tables:
            tables = {split: tables["all"]}
    known = KNOWN.get(result)
    rows: dict[str, Any] = {"rows": tables["all"]} if "all" in tables else {**tables}
    task = Task(**rows, **{**said, "label": column}, name=name or result, seed=seed)
    guessed = {"text": list(task.fields)} if task.guesses and text is None else {}  # so that other rows change no guess
    task = task.with_(origin={**origin, **guessed})
    if known is None or any(f"{{{f}" not in known.masked for f in task.fields):
        return task
    words = {label: known.words[label] for label in task.labels if label in known.words}
    return task.with_(
        template=task.template if said["template"] is not None else known.templates(),
        label_words=task.label_words if said["label_words"] is not None else words,
    )


def find_tasks(folder: str | Path) -> dict[str, Path]:
    """Find the tasks of a folder; return paths by name, in order: data files by their stem, subfolders by their name.

    Hidden files, descriptions and files of other kinds (a README, say) are no tasks.

    Raises: DataError if there is none, or if two have one name.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder with one data file, or one subfolder, for each task")
    results: dict[str, Path] = {}
    for path in sorted(place.iterdir()):
        data = path.suffix in SUFFIXES and not path.name.endswith(f".{DESCRIPTION}")
        if path.name.startswith(".") or not (path.is_dir() or data):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in results:
            raise DataError(f"{results[name]} and {path} are both the task {name!r}; rename one of the two")
        results[name] = path
    if not results:
        raise DataError(f"{folder} holds no task; put one data file ({', '.join(SUFFIXES)}) in it for each task")
    return results


def _description(place: str) -> dict[str, Any]:
    """Read the task's description file; return an empty dict if there is none."""
    path = Path(place).expanduser()
    file = path / DESCRIPTION if path.is_dir() else path.with_name(f"{path.stem}.{DESCRIPTION}")
    if place.startswith("hf:") or not file.is_file():
        return {}
    try:
        said = parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); give a JSON object") from error
    if not isinstance(said, dict) or said.keys() - set(DESCRIBED):
        unknown = ", ".join(sorted(said.keys() - set(DESCRIBED))) if isinstance(said, dict) else type(said).__name__
        raise DataError(f"{file} has {unknown}; give a JSON object with any of {', '.join(DESCRIBED)}")
    for key, value in said.items():
        fits, wanted = DESCRIBED[key]
        if not fits(value):
            raise DataError(f"{file}: {key} is {json.dumps(value)}; {wanted}")
    return said


def _listed(place: str) -> dict[str, Any]:
    """Read the task's metric from `tasks.json` beside its folder, as instruction induction is published."""
    path = Path(place).expanduser()
    listing = path.resolve().parent / LISTING
    if place.startswith("hf:") or not path.is_dir() or not listing.is_file():
        return {}
    try:
        said = parse_json(listing.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{listing} cannot be read ({error}); give a JSON object of tasks by name") from error
    own = said.get(path.resolve().name) if isinstance(said, dict) else None
    metric = own.get("metric") if isinstance(own, dict) else None
    if metric is None:
        return {}
    if metric not in NAMES:
        raise DataError(f"{listing}: the metric of {path.name} is {metric!r}; give one of {', '.join(NAMES)}")
    return {"metric": metric}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_template(value: Any) -> bool:
    messages = isinstance(value, list) and value and all(isinstance(m, dict) for m in value)
    kinds = isinstance(value, dict) and value and all(_is_template(v) for v in value.values())
    return _is_text(value) or bool(messages) or bool(kinds)


def _are_words(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(w) or _are_texts(w) for w in value.values())


def _is_metric(value: Any) -> bool:
    return isinstance(value, str) and value in NAMES


def _is_column(value: Any) -> bool:
    return _is_text(value) or _are_texts(value)


COLUMNS = "give the name of a column, or a list of names"
DESCRIBED = {  # what a description may have, and in which form
    "text": (_is_column, COLUMNS),
    "label": (_is_text, "give the name of a column"),
    "options": (_is_column, COLUMNS),
    "labels": (_are_texts, "give a list of names"),
    "template": (_is_template, "give a text, a list of messages, or either by kind of model (masked, causal, chat)"),
    "label_words": (_are_words, "give a word, or a list of words, by label"),
    "targets": (_is_text, "give the name of a column"),
    "metric": (_is_metric, f"give one of {', '.join(NAMES)}"),
    "case": (lambda value: value in get_args(Case), f"give one of {', '.join(get_args(Case))}"),
    "slots": (lambda value: value in SLOTS, f"give one of {', '.join(SLOTS)}"),
}


def _tables(place: str, label: str) -> tuple[dict[str, Table], str]:
    """Read the tables of the source by split, and the task's name."""
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


def _fixed(place: str, given: Mapping[str, Any]) -> Task:
    """Return a task whose rows and columns are fixed; the template, the label words and the case may be others.

    Raises: ConfigError for an argument that would change what is read.
    """
    kind, _, name = place.partition(":")
    task = _embedded(name) if kind == "builtin" else fact_source(name)

    def names(value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    own = {"text": task.fields, "labels": task.labels, "label": "label", "metric": task.metric, "slots": task.slots}
    changes: dict[str, Any] = {}
    for argument, value in given.items():
        if value is None or names(value) == names(own.get(argument)):
            continue
        if argument == "label_words":
            changes[argument] = {key: names(words) for key, words in value.items()}
        elif argument == "template" or (argument == "case" and task.metric):
            changes[argument] = value
        else:
            raise ConfigError(
                f"{place} is what it is: {argument}={shown(value)} would change how it is read; leave it out, or give "
                "data of your own"
            )
    return task.with_(**changes) if changes else task


def _embedded(name: str) -> Task:
    if name not in BUILTIN:
        raise ConfigError(f"there is no embedded task {name!r}; there are {', '.join(BUILTIN)}")
    return BUILTIN[name]()
