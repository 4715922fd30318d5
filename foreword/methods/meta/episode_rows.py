"""Encode episodes as rows: every row is tokenized once, and label words are those of the episode."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, final

from foreword.core.format import Format
from foreword.methods.meta.task_losses import EpisodeRow
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.encoding.label_layout import LabelPlan
from foreword.tasks.episodes import Episode, EpisodeSource, Split

Part = Literal["support", "query"]


@final
class EpisodeRows:
    """Hold the rows of a source in the format of their task; `extra` columns of the context go to a prefix.

    A format names all labels of its task; the plan of an episode has those of its classes.
    """

    def __init__(self, lm: FrozenLM, source: EpisodeSource, formats: Sequence[Format], extra: int = 0):
        self.source, self.formats = source, tuple(formats)
        self._encoders = [Encoder.build(lm, form, extra) for form in formats]
        self._rows: dict[tuple[str, int], list[Encoded]] = {}
        self._plans: dict[tuple[int, tuple[int, ...]], LabelPlan] = {}

    def rows(self, split: Split, task: int) -> list[Encoded]:
        """Return all rows of a split of a task, encoded at the first call."""
        key = split, task
        if key not in self._rows:
            self._rows[key] = self._encoders[task].encode_rows(self.source.tasks[task].rows(split))
        return self._rows[key]

    def longest(self, split: Split) -> Encoded:
        """Return the row of most columns in a split."""
        tasks = range(len(self.source.tasks))
        return max((row for task in tasks for row in self.rows(split, task)), key=lambda row: len(row.ids_S))

    def folds(self, split: Split, episodes: Sequence[Episode], parts: Sequence[Part]) -> list[EpisodeRow]:
        """Return the rows of these parts of all episodes; episode n is task n of the fold."""
        results = []
        for number, episode in enumerate(episodes):
            rows = self.rows(split, episode.task)
            plan = self._plan(episode)
            chosen = [
                (row, episode.label(place, part))
                for part in parts
                for place, row in enumerate(episode.support if part == "support" else episode.query)
            ]
            share = 1.0 / len(chosen)
            results += [EpisodeRow(number, replace(rows[row], plan=plan), label, share) for row, label in chosen]
        return results

    def _plan(self, episode: Episode) -> LabelPlan:
        key = episode.task, episode.classes
        if key not in self._plans:
            whole = self._encoders[episode.task].plan
            assert whole is not None, "a source's tasks have labels, and their formats words"
            self._plans[key] = LabelPlan(whole.kind, tuple(whole.words[c] for c in episode.classes), whole.mean)
        return self._plans[key]
