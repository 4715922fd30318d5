"""Draw episodes, small problems of N classes with K examples each, from labelled rows; seeded and hashed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import numpy as np

from foreword.errors import ConfigError, DataError
from foreword.tasks.class_splits import SPLITS, apart, refuse_leakage
from foreword.tasks.rows import Row, label_of
from foreword.tasks.task import Task

Split = Literal["train", "validation", "test"]


@final
@dataclass(frozen=True)
class Episode:
    """Hold the row numbers of an episode, in one split of one task. Its label n is `classes[n]` of the task.

    `support` and `query` list rows class after class, the same number of each class.
    """

    task: int
    classes: tuple[int, ...]
    support: tuple[int, ...]
    query: tuple[int, ...]

    def label(self, place: int, part: Literal["support", "query"]) -> int:
        """Return the label of the row at `place` of the support or the query."""
        return place * len(self.classes) // len(self.support if part == "support" else self.query)


@final
@dataclass(frozen=True, eq=False)
class EpisodeSource:
    """Draw episodes from one task with many classes, or from several tasks with their own labels and label words.

    An episode has `ways` classes (all, if a task has no more), `shots` support rows of each and `queries` query rows of
    each, or as many as every one of its classes has left. Episode n of a split and seed is drawn from these three
    alone, so it does not depend on the order of the draws.
    """

    tasks: tuple[Task, ...]
    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        """Check the sizes and the tasks.

        Raises: ConfigError for sizes below 2, 1 and 1; DataError for options in rows, and for texts in two splits.
        """
        if self.ways < 2 or self.shots < 1 or self.queries < 1 or not self.tasks:
            raise ConfigError(
                f"an episode of {self.ways} ways, {self.shots} shots and {self.queries} queries from "
                f"{len(self.tasks)} tasks cannot be drawn; give 2, 1, 1 and 1, or more"
            )
        for task in self.tasks:
            if not task.labels:
                raise DataError(f"{task.name} brings options in each row and has no classes; give labelled rows")
        refuse_leakage(self.tasks)

    @property
    def by_classes(self) -> bool:
        """Return whether the splits hold different classes of one task, and not different rows of the same classes."""
        return len(self.tasks) == 1 and apart(self.tasks[0])

    @cached_property
    def _pools(self) -> dict[str, list[dict[int, list[int]]]]:
        """Return, for each split and task, the row numbers of every class that has more rows than the shots."""
        results: dict[str, list[dict[int, list[int]]]] = {}
        for split in SPLITS:
            results[split] = []
            for task in self.tasks:
                pools: dict[int, list[int]] = {}
                for number, row in enumerate(task.rows(split)):
                    label = label_of(row, "Episodes need one in every row.")
                    pools.setdefault(label, []).append(number)
                results[split].append({c: rows for c, rows in sorted(pools.items()) if len(rows) > self.shots})
        return results

    def has(self, split: Split) -> bool:
        """Return whether this split has episodes: two classes of one task have a row more than the shots."""
        return any(len(pools) > 1 for pools in self._pools[split])

    def draw(self, split: Split, seed: int, number: int) -> Episode:
        """Draw the episode `number` of a split and seed. Raises: DataError if no two classes have enough rows."""
        able = [t for t, pools in enumerate(self._pools[split]) if len(pools) > 1]
        if not able:
            names = ", ".join(task.name for task in self.tasks)
            raise DataError(
                f"the {split} rows of {names} have no two classes of {self.shots + 1} rows; ask for fewer shots, or "
                "add rows"
            )
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        task = able[int(rng.integers(len(able)))]
        pools = self._pools[split][task]
        classes = sorted(pools)
        if len(classes) > self.ways:
            classes = sorted(int(c) for c in rng.choice(classes, self.ways, replace=False))
        queries = min(self.queries, *(len(pools[c]) - self.shots for c in classes))
        drawn = [rng.choice(pools[c], self.shots + queries, replace=False).tolist() for c in classes]
        support = tuple(row for rows in drawn for row in rows[: self.shots])
        return Episode(task, tuple(classes), support, tuple(row for rows in drawn for row in rows[self.shots :]))

    def episodes(self, split: Split, seed: int, count: int, first: int = 0) -> list[Episode]:
        return [self.draw(split, seed, number) for number in range(first, first + count)]

    def as_task(self, split: Split, episode: Episode) -> Task:
        """Return an episode as a task for any other method: support rows to train on and query rows to test."""
        task = self.tasks[episode.task]
        rows = task.rows(split)
        names = tuple(task.labels[c] for c in episode.classes)

        def taken(part: Literal["support", "query"], numbers: Sequence[int]) -> tuple[Row, ...]:
            return tuple(
                Row(rows[n].fields, episode.label(place, part), (), rows[n].where) for place, n in enumerate(numbers)
            )

        own = task.label_words or {}
        words = {name: own[name] for name in names if name in own}
        support, query = taken("support", episode.support), taken("query", episode.query)
        return task.with_(labels=names, label_words=words or None, train=support, validation=(), test=query)

    def hash(self, split: Split, episodes: Sequence[Episode]) -> str:
        """Return the sha256 of what the episodes hold: the tasks' names, class names and texts, in order."""
        digest = hashlib.sha256()
        for episode in episodes:
            task = self.tasks[episode.task]
            rows = task.rows(split)
            told = [task.name, [task.labels[c] for c in episode.classes]]
            texts = [[rows[n].text() for n in numbers] for numbers in (episode.support, episode.query)]
            digest.update(json.dumps([told, texts], ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()


def joined(tasks: Mapping[str, Task], name: str) -> Task:
    """Join all rows of several tasks, under labels that begin with their task's name, for the record of a run."""
    labels = [f"{key}: {label}" for key, task in tasks.items() for label in task.labels]
    fields = tuple(dict.fromkeys(field for task in tasks.values() for field in task.fields))
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    first = 0
    for task in tasks.values():
        for split in SPLITS:
            rows[split] += [
                Row(r.fields, None if r.label is None else first + r.label, (), f"{task.name}: {r.where}")
                for r in task.rows(split)
            ]
        first += len(task.labels)
    base = next(iter(tasks.values()))
    return base.with_(
        name=name,
        fields=fields,
        labels=tuple(labels),
        label_words=None,
        template=None,
        notes=(),
        **{split: tuple(some) for split, some in rows.items()},
    )
