"""Hold a task: labelled rows in three splits, with the label names and the prompt format that it has by default."""

import copy
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

from foreword.core.arguments import checked
from foreword.core.format import Answers, ChatOptions, Decoding, Format, Truncate
from foreword.core.html import html_table
from foreword.errors import ConfigError
from foreword.tasks.answer_metrics import NAMES, Metric
from foreword.tasks.formats import build_format, default_decoding
from foreword.tasks.option_labels import option_index, reading_of
from foreword.tasks.rows import Row, Table, WantedColumns, merge_sources, to_rows
from foreword.tasks.sources import split_mapping, table_of
from foreword.tasks.split_tables import arrange, labels_of, where_of
from foreword.tasks.splits import draw, draw_shots
from foreword.tasks.text_metric import Case, Judge

if TYPE_CHECKING:
    from foreword.models.base import FrozenLM

Source = Any  # list of dicts, datasets.Dataset, DataFrame, or sources.Table
TemplateSource = str | Sequence[Mapping[str, str]]


@final
@dataclass(frozen=True, init=False, eq=False)
class Task:
    """Hold rows to classify or to answer in text, in `train`, `validation` and `test`.

    `labels` are the label names in order; empty if each row has its own options, or if answers are texts. Texts are
    compared with the row's targets by `metric` (None if answers are not texts) in `case` (tasks/text_metric), and
    `slots` names the rules for their slot errors (tasks/slots). `template` and `label_words` are the defaults of
    `format`. `notes` say how splits were made. `synthetic` marks generated text. `guesses` are those of the notes that
    say which columns were left out, or give the answer away. `origin` says where `read_task` found the rows and what
    was drawn from them, so that the same rows can be read again; None if rows were given in memory or changed by hand.
    `shots` rows a label were drawn for training (None: all).
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
    metric: Metric | None
    case: Case
    slots: str | None
    guesses: tuple[str, ...]

    @checked
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
        targets: str | None = None,
        metric: Metric | None = None,
        case: Case = "kept",
        slots: str | None = None,
        seed: int = 0,
    ) -> None:
        """Split one source of rows by hash into 70% train, 10% validation and 20% test; `seed` varies that split.

        Given splits are kept. Without validation rows a tenth of the training rows is carved out. Without test rows
        the validation rows become the test, and the tenth serves for development, so that nothing is chosen on rows
        that are reported. `text` names one column or several; `options` the column or columns of each row's choices.
        `targets` names the column of answers in text (one called targets, output or answer is found where there are no
        labels), and `metric` says how they are compared: exact_match unless given. `case` and `slots` belong to metrics
        of generation; with such a metric, rows with the same texts in a split are one row with all their targets.
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
            split: source if isinstance(source, Table) else table_of(source, where_of(name, split), label)
            for split, source in sources.items()
        }
        wanted = WantedColumns(text, label, options, targets)
        splits, columns, notes = arrange(tables, wanted, seed)
        names = labels_of(splits, tables, columns, labels, name)
        judge = _judge(metric, case, slots, columns.targets, name)
        reading, line = reading_of([*splits.values()], columns) if columns.options else (None, None)
        allowed = None if columns.options else names
        index_of = partial(option_index, reading=reading)
        rows_of = {s: to_rows(t, columns, allowed, index_of) for s, t in splits.items()}
        notes = (*notes, *columns.lines, *([line] if line else []))
        if judge is not None and judge.generates:
            merged = {s: merge_sources(rows) for s, rows in rows_of.items()}
            less = [
                f"{len(rows_of[s])} {s} texts of {len(rows)} sources"
                for s, rows in merged.items()
                if len(rows) < len(rows_of[s])
            ]
            notes, rows_of = (*notes, *([f"{', '.join(less)}: one row a source"] if less else [])), merged
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
            metric=judge.metric if judge else None,
            case=case,
            slots=slots,
            guesses=columns.lines,
        )

    @property
    def answers(self) -> Answers:
        """Return what an answer is: one of the labels, one of the row's own options, or a text."""
        return "text" if self.metric else "labels" if self.labels else "options"

    @property
    def judge(self) -> Judge:
        """Return the judge of answers in text: the task's metric, case and slots."""
        assert self.metric is not None, "the answers of the task are texts"
        return Judge(self.metric, self.case, self.slots)

    def _set(self, **values: Any) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def with_(self, **changes: Any) -> "Task":
        """Return a copy with some attributes changed. A copy with other rows has no origin, unless one is given."""
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
        """Return the origin of a task that was drawn from this one by its method `how`; None if this one has none."""
        if self.origin is None:
            return None
        return {**self.origin, "then": [*self.origin.get("then", []), {"how": how, **arguments}]}

    @checked
    def few_shot(self, k: int, seed: int = 0) -> "Task":
        """Draw k training rows of each label, and as many others from the training rows for development."""
        train, development = draw_shots(self.train, self.labels, k, seed, self.name)
        note = f"{k} shots a label and as many for development, both from the training rows, seed {seed}"
        origin = self._drawn("few_shot", k=k, seed=seed)
        notes = (*self.notes, note)
        return self.with_(train=train, validation=development, notes=notes, origin=origin, shots=k)

    @checked
    def limit(
        self, train: int | None = 2000, validation: int | None = None, test: int | None = 1000, seed: int = 0
    ) -> "Task":
        """Draw at most so many rows of each split, at random with `seed`; None keeps all."""
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

    @checked
    def relabel_shuffled(self, seed: int = 0) -> "Task":
        """Permute the labels of training and validation rows, as a control at chance level; test rows stay true.

        Rows with their own options get a random one as their label.
        """
        rng = random.Random(f"shuffle {seed}")
        changes: dict[str, Any] = {}
        for split in ("train", "validation"):
            rows = self.rows(split)
            if self.metric:
                mixed = rng.sample([(row.targets, row.reasoning) for row in rows], len(rows))
                changes[split] = tuple(
                    replace(r, targets=targets, reasoning=reasoning)
                    for r, (targets, reasoning) in zip(rows, mixed, strict=True)
                )
                continue
            new = [row.label for row in rows]
            if self.labels:
                rng.shuffle(new)
            else:
                new = [None if row.label is None else rng.randrange(len(row.options)) for row in rows]
            changes[split] = tuple(replace(r, label=n) for r, n in zip(rows, new, strict=True))
        note = f"labels of training and validation rows shuffled, seed {seed}"
        return self.with_(**changes, notes=(*self.notes, note), shots=self.shots)

    @checked
    def rows(self, split: str) -> tuple[Row, ...]:
        """Return the rows of a split by its name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        if split not in found:
            raise ConfigError(f"there is no split {split!r}; give train, validation or test")
        return found[split]

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of each split's content and order: texts, options, label names or targets, reasoning."""
        results = {}
        for split in ("train", "validation", "test"):
            digest = hashlib.sha256()
            for row in self.rows(split):
                answer = list(row.targets) or None
                if row.label is not None:
                    answer = (row.options or self.labels)[row.label]
                told = [row.text(), answer, *([row.reasoning] if row.reasoning else [])]
                digest.update(json.dumps(told, ensure_ascii=False).encode() + b"\n")
            results[split] = digest.hexdigest()
        return results

    def describe(self) -> str:
        """Describe the task in one line: labels, split sizes, fields, and whether the text is synthetic."""
        what = f"{len(self.labels)} labels ({', '.join(self.labels)})" if self.labels else "options in each row"
        if self.metric:
            what = f"answers in text ({self.metric.replace('_', ' ')})"
        sizes = ", ".join(f"{len(self.rows(s))} {s}" for s in ("train", "validation", "test"))
        kind = "; synthetic text" if self.synthetic else ""
        return f"{self.name}: {what}; {sizes} rows; text in {', '.join(self.fields)}{kind}"

    def _repr_html_(self) -> str:
        """Return the first rows of each split as a table, for notebooks."""
        shown = [(split, row) for split in ("train", "validation", "test") for row in self.rows(split)[:2]]
        cells = [(split, *(row.fields[name] for name in self.fields), self._answer(row)) for split, row in shown]
        return html_table(["split", *self.fields, "answer"], cells, self.describe())

    def _answer(self, row: Row) -> str:
        """Return a row's targets, or the name of its label, as text."""
        if row.targets:
            return " | ".join(row.targets)
        names = self.labels or row.options
        return "" if row.label is None else names[row.label]

    @checked
    def format(
        self,
        kind: Literal["masked", "causal", "seq2seq"],
        template: TemplateSource | None = None,
        label_words: Mapping[str, str | Sequence[str]] | None = None,
        *,
        chat: bool = False,
        truncate: Truncate = "tail",
        soft_first: bool = False,
        max_length: int | None = None,
        pieces: Literal["mean", "sum"] = "mean",
        decoding: Decoding | None = None,
        lm: "FrozenLM | None" = None,
        chat_options: Mapping[str, Any] | ChatOptions | None = None,
    ) -> Format:
        """Build the format for a kind of model, from the template and words given, else the task's, else generic ones.

        `chat` asks for messages if neither a template was given nor the task has one. Answers in text are decoded as
        `decoding` says, by default greedily, to the end of the line and as long as the targets of training and
        validation rows need (`default_decoding`), which `lm` counts in its tokens. `chat_options` are variables of the
        tokenizer's chat template, by name.

        Raises: ConfigError for a masked model if answers are texts, and for `decoding` if they are not.
        """
        if self.metric:
            self.judge.require()  # before anything is trained
            if kind == "masked":
                raise ConfigError(
                    f"The answers of {self.name} are texts, and a masked model cannot write; use a causal model, or "
                    "this one with --kind causal if it has such a head."
                )
            chats = chat or not isinstance(template if template is not None else self._template(kind, chat), str | None)
            decoding = decoding or default_decoding((*self.train, *self.validation), chats, lm, self.metric)
        elif decoding is not None:
            raise ConfigError(
                f"The answers of {self.name} are labels, which are scored and not written; leave decoding out, or use "
                "a method that writes before it answers (chain-of-thought)."
            )
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
            decoding=decoding,
            chat_options=ChatOptions.of(chat_options),
        )

    def _template(self, kind: str, chat: bool) -> TemplateSource | None:
        if isinstance(self.template, Mapping):
            if kind == "seq2seq":  # what a causal model reads suits an encoder, whose decoder writes the answer
                return self.template.get("seq2seq", self.template.get("causal"))
            return self.template.get("chat" if chat else kind)
        return self.template


def _judge(metric: Metric | None, case: Case, slots: str | None, texts: bool, name: str) -> Judge | None:
    """Return how answers in text are judged, before any row is read; None if answers are labels or options."""
    if texts:
        return Judge(metric or "exact_match", case, slots)
    if metric is not None and metric not in NAMES:
        raise ConfigError(f"{metric!r} is not a metric of texts; choose one of {', '.join(NAMES)}.")
    if metric is not None or case != "kept" or slots:
        raise ConfigError(
            f"The answers of {name} are labels, which no metric of texts fits; name targets=, or no metric."
        )
    return None
