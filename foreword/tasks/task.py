"""A task: labelled rows in three splits, with the label names, and how it is put to a model unless told otherwise."""

import copy
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from foreword.core.format import Format, Truncate
from foreword.errors import ConfigError, DataError
from foreword.tasks.formats import build_format
from foreword.tasks.rows import Columns, Row, Table, choose_columns, label_names, to_rows
from foreword.tasks.sources import split_mapping, table_of
from foreword.tasks.splits import CARVE_RULE, SPLIT_RULE, carve, draw, draw_shots, hashed_split

Source = Any  # list of dicts, datasets.Dataset, DataFrame, or sources.Table
TemplateSource = str | Sequence[Mapping[str, str]]


@final
@dataclass(frozen=True, init=False, eq=False)
class Task:
    """Rows to classify, in `train`, `validation` and `test`.

    `labels` are the label names in order; empty where each row has its own options. `template` and `label_words` are
    what `format` uses unless told otherwise. `notes` say how splits were made. `synthetic` marks generated text.
    `origin` says where `read_task` found the rows and what was drawn from them, so that the same rows can be had again;
    None where rows were given in memory or changed by hand. `shots` rows a label were drawn for training (None: all).
    """

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    template: TemplateSource | Mapping[str, TemplateSource] | None
    label_words: Mapping[str, Sequence[str]] | None
    notes: tuple[str, ...]
    synthetic: bool
    origin: Mapping[str, Any] | None
    shots: int | None

    def __init__(
        self,
        rows: Source | Mapping[str, Source] | None = None,
        *,
        train: Source | None = None,
        validation: Source | None = None,
        test: Source | None = None,
        text: str | Sequence[str] | None = None,
        label: str = "label",
        options: str | Sequence[str] | None = None,
        name: str = "task",
        template: TemplateSource | Mapping[str, TemplateSource] | None = None,
        label_words: Mapping[str, str | Sequence[str]] | None = None,
        labels: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """One source of rows is split by hash into 70% train, 10% validation and 20% test; `seed` varies that split.

        Given splits are kept. Without validation rows a tenth of the training rows is carved out. Without test rows
        the validation rows become the test, and the tenth serves for development, so that nothing is chosen on rows
        that are reported. `text` names one column or several; `options` the column or columns of each row's choices.
        """
        given = {"train": train, "validation": validation, "test": test}
        sources = {split: source for split, source in given.items() if source is not None}
        if rows is not None and sources:
            raise ConfigError("rows and named splits were both given; give rows alone, or train, validation and test")
        if isinstance(rows, Mapping):
            sources = split_mapping(rows)
        elif rows is not None:
            sources = {"all": rows}
        if not sources:
            raise ConfigError("a task needs rows; give rows=, or train= and test=")
        tables = {
            split: source if isinstance(source, Table) else table_of(source, _where(name, split), label)
            for split, source in sources.items()
        }
        splits, notes = _arrange(tables, label, text, options, seed)
        columns = choose_columns([*splits.values()], text, label, options)
        names = _labels(splits, tables, columns, labels, name)
        rows_of = {s: to_rows(t, columns, None if columns.options else names) for s, t in splits.items()}
        words = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in label_words.items()} if label_words else None
        self._set(
            name=name,
            fields=columns.text,
            labels=names,
            train=rows_of.get("train", ()),
            validation=rows_of.get("validation", ()),
            test=rows_of.get("test", ()),
            template=template,
            label_words=words,
            notes=notes,
            synthetic=False,
            origin=None,
            shots=None,
        )

    def _set(self, **values: Any) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def with_(self, **changes: Any) -> "Task":
        """A copy with some attributes changed. With other rows it has no origin any more, unless one is given."""
        unknown = set(changes) - set(self.__dataclass_fields__)
        if unknown:
            raise ConfigError(f"a task has no {sorted(unknown)[0]!r}; it has {', '.join(self.__dataclass_fields__)}")
        if changes.keys() & {"train", "validation", "test"}:
            changes.setdefault("origin", None)
        if "train" in changes:
            changes.setdefault("shots", None)
        task = copy.copy(self)
        task._set(**changes)
        return task

    def _drawn(self, how: str, **arguments: Any) -> Mapping[str, Any] | None:
        """The origin of a task that was drawn from this one by its method `how`."""
        if self.origin is None:
            return None
        return {**self.origin, "then": [*self.origin.get("then", []), {"how": how, **arguments}]}

    def few_shot(self, k: int, seed: int = 0) -> "Task":
        """k training rows of each label and as many others, drawn from the training rows, for development."""
        train, development = draw_shots(self.train, self.labels, k, seed, self.name)
        note = f"{k} shots a label and as many for development, both from the training rows, seed {seed}"
        origin = self._drawn("few_shot", k=k, seed=seed)
        notes = (*self.notes, note)
        return self.with_(train=train, validation=development, notes=notes, origin=origin, shots=k)

    def limit(
        self, train: int | None = 2000, validation: int | None = None, test: int | None = 1000, seed: int = 0
    ) -> "Task":
        """At most so many rows of each split, drawn at random with `seed`; None keeps all."""
        wanted = {"train": train, "validation": validation, "test": test}
        changes: dict[str, Any] = {}
        for split, count in wanted.items():
            rows = self.rows(split)
            if count is not None and count < len(rows):
                changes[split] = draw(rows, count, seed)
        if not changes:
            return self
        cut = ", ".join(f"{len(rows)} of {len(self.rows(split))} {split}" for split, rows in changes.items())
        origin = self._drawn("limit", **wanted, seed=seed)
        return self.with_(**changes, notes=(*self.notes, f"{cut} rows drawn with seed {seed}"), origin=origin)

    def relabel_shuffled(self, seed: int = 0) -> "Task":
        """The chance control: labels of the training and the validation rows are permuted; test rows stay true."""
        rng = random.Random(f"shuffle {seed}")
        changes: dict[str, Any] = {}
        for split in ("train", "validation"):
            rows = self.rows(split)
            new = [row.label for row in rows]
            if self.labels:
                rng.shuffle(new)
            else:
                new = [rng.randrange(len(row.options)) for row in rows]
            changes[split] = tuple(Row(r.fields, n, r.options, r.where) for r, n in zip(rows, new, strict=True))
        note = f"labels of training and validation rows shuffled, seed {seed}"
        return self.with_(**changes, notes=(*self.notes, note))

    def rows(self, split: str) -> tuple[Row, ...]:
        """The rows of a split by its name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        if split not in found:
            raise ConfigError(f"there is no split {split!r}; give train, validation or test")
        return found[split]

    def hashes(self) -> dict[str, str]:
        """sha256 of each split's content and order: texts, options and label names."""
        found = {}
        for split in ("train", "validation", "test"):
            digest = hashlib.sha256()
            for row in self.rows(split):
                answer = None if row.label is None else (row.options or self.labels)[row.label]
                digest.update(json.dumps([row.text(), answer], ensure_ascii=False).encode() + b"\n")
            found[split] = digest.hexdigest()
        return found

    def describe(self) -> str:
        """One line for a person: labels, split sizes, fields, and whether the text is synthetic."""
        what = f"{len(self.labels)} labels ({', '.join(self.labels)})" if self.labels else "options in each row"
        sizes = ", ".join(f"{len(self.rows(s))} {s}" for s in ("train", "validation", "test"))
        kind = "; synthetic text" if self.synthetic else ""
        return f"{self.name}: {what}; {sizes} rows; text in {', '.join(self.fields)}{kind}"

    def format(
        self,
        kind: Literal["masked", "causal"],
        template: TemplateSource | None = None,
        label_words: Mapping[str, str | Sequence[str]] | None = None,
        *,
        chat: bool = False,
        truncate: Truncate = "tail",
        soft_first: bool = False,
        max_length: int | None = None,
        pieces: Literal["mean", "sum"] = "mean",
    ) -> Format:
        """How the task is put to such a model: the template and words given, else the task's, else generic ones.

        `chat` asks for messages where neither a template was given nor the task has one.
        """
        return build_format(
            kind,
            self.fields,
            self.labels,
            template if template is not None else self._template(kind, chat),
            label_words if label_words is not None else self.label_words,
            chat=chat,
            truncate=truncate,
            soft_first=soft_first,
            max_length=max_length,
            pieces=pieces,
        )

    def _template(self, kind: str, chat: bool) -> TemplateSource | None:
        if isinstance(self.template, Mapping):
            return self.template.get("chat" if chat else kind)
        return self.template


def _where(name: str, split: str) -> str:
    return name if split == "all" else f"{name} ({split})"


def _arrange(
    tables: Mapping[str, Table],
    label: str,
    text: str | Sequence[str] | None,
    options: str | Sequence[str] | None,
    seed: int,
) -> tuple[dict[str, Table], tuple[str, ...]]:
    """The three splits, made as `Task.__init__` says, with notes on what was done."""
    splits, notes = dict(tables), []
    for split in [s for s in splits if s in ("validation", "test")]:
        if splits[split].records and splits[split].unlabelled(label):
            notes.append(f"the {split} rows have no labels and are left out")
            del splits[split]
    if not splits:
        raise DataError(f"{next(iter(tables.values())).where} has no labels in column {label!r}; give labelled rows")
    columns = choose_columns([*splits.values()], text, label, options)

    def content(item: tuple[int, Mapping[str, Any]]) -> str:
        return json.dumps([str(item[1].get(name)) for name in (*columns.text, *columns.options)], ensure_ascii=False)

    if set(splits) == {"train"}:
        splits = {"all": splits["train"]}
    if "all" in splits:
        table = splits["all"]
        parts = hashed_split([*enumerate(table.records)], content, seed)
        notes.append(f"split by {SPLIT_RULE} (seed {seed})")
        names = ("train", "validation", "test")
        return {n: table.pick([i for i, _ in part]) for n, part in zip(names, parts, strict=True)}, tuple(notes)
    if "train" not in splits:
        return splits, (*notes, "there are no training rows")
    if "test" not in splits:
        splits["test"] = splits.pop("validation")
        notes.append("there are no test rows, so the validation rows are the test")
    if "validation" not in splits:
        table = splits["train"]
        train, validation = carve([*enumerate(table.records)], content)
        splits["train"] = table.pick([i for i, _ in train])
        splits["validation"] = table.pick([i for i, _ in validation])
        notes.append(CARVE_RULE)
    return splits, tuple(notes)


def _labels(
    splits: Mapping[str, Table], tables: Mapping[str, Table], columns: Columns, given: Sequence[str] | None, name: str
) -> tuple[str, ...]:
    """Label names: those given, else those of the training rows (before validation rows were carved out of them)."""
    if columns.options:
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
