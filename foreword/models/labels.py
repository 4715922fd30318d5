"""Label words as pieces, and where in a row each piece is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from foreword.core.shapes import Bool, Int
from foreword.models.base import Kind

Words = tuple[tuple[tuple[int, ...], ...], ...]  # the pieces of each word of each label


@final
@dataclass(frozen=True, eq=False)
class Layout:
    """Which piece is read where. A row becomes `passes` model rows; piece n of word w of label c is `piece_CWn`, read
    in model row `pass_CWn` at `read_CWn` columns after the answer.

    A masked model's pass e has `masks_E[e]` masks in place of the answer. A causal model's pass e has the pieces
    `tail_EK` (-1 where none) after the text, at depth `depth_EK` below it; `sees_EKK` says which of them see which.
    """

    piece_CWn: Int[np.ndarray, "C W n"]
    real_CWn: Bool[np.ndarray, "C W n"]
    pass_CWn: Int[np.ndarray, "C W n"]
    read_CWn: Int[np.ndarray, "C W n"]
    masks_E: Int[np.ndarray, "E"]
    tail_EK: Int[np.ndarray, "E K"]
    depth_EK: Int[np.ndarray, "E K"]
    sees_EKK: Bool[np.ndarray, "E K K"]

    @property
    def passes(self) -> int:
        return self.masks_E.shape[0]

    @cached_property
    def grow(self) -> int:
        """Columns added to the row, at most."""
        return int(self.masks_E.max()) - 1 + self.tail_EK.shape[1]


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """The label words of a row as pieces. Rows with the same labels share one plan, and its layouts are made once.

    `single` says that every word of every label is one piece: then logits rank labels as log-probabilities do, and no
    sum over the vocabulary is needed, unless the plan is to be `normalised`: the likelihood of a text is asked for.
    `shift` is added to the labels' log-scores, which `temperature` then divides.
    """

    kind: Kind
    words: Words
    mean: bool = True
    normalised: bool = False
    shift: tuple[float, ...] = ()
    temperature: float = 1.0

    @cached_property
    def single(self) -> bool:
        return self.longest == 1

    @cached_property
    def longest(self) -> int:
        """Pieces of the longest word."""
        return max(len(word) for label in self.words for word in label)

    @property
    def labels(self) -> int:
        return len(self.words)

    def layout(self, trie: bool = True, *, apart: bool = False) -> Layout:
        """The masked layout; or the causal one, as a trie or with a model row for each word that needs one. `apart`
        gives each word a row that is no longer than the word needs."""
        if self.kind == "masked":
            return self._masked
        return self._apart if apart else self._trie if trie else self._rows

    @cached_property
    def _masked(self) -> Layout:
        counts = sorted({len(word) for label in self.words for word in label})
        where = {word: [(counts.index(len(word)), j) for j in range(len(word))] for word in self._distinct()}
        return self._arrange(where, masks=counts, tails=[[]] * len(counts), parents=[[]] * len(counts))

    @cached_property
    def _trie(self) -> Layout:
        """All words share one model row: each distinct beginning of a word that goes on is one column."""
        nodes: dict[tuple[int, ...], int] = {(): -1}
        for word in sorted(self._distinct(), key=len):
            for j in range(1, len(word)):
                nodes.setdefault(word[:j], len(nodes) - 1)
        where = {word: [(0, nodes[word[:j]] + 1) for j in range(len(word))] for word in self._distinct()}
        inner = [node for node in nodes if node]
        parents = [nodes[node[:-1]] for node in inner]
        return self._arrange(where, masks=[1], tails=[[node[-1] for node in inner]], parents=[parents])

    @cached_property
    def _rows(self) -> Layout:
        """A model row for each beginning of a word that is not itself the beginning of another."""
        starts = sorted({word[:-1] for word in self._distinct()}, key=len, reverse=True)
        rows: list[tuple[int, ...]] = []
        for start in starts:
            if not any(row[: len(start)] == start for row in rows):
                rows.append(start)
        where = {}
        for word in self._distinct():
            row = next(i for i, r in enumerate(rows) if r[: len(word) - 1] == word[:-1])
            where[word] = [(row, j) for j in range(len(word))]
        return self._in_rows(where, rows)

    @cached_property
    def _apart(self) -> Layout:
        """A model row for each beginning of a word."""
        rows = list(dict.fromkeys(word[:-1] for word in self._distinct()))
        where = {word: [(rows.index(word[:-1]), j) for j in range(len(word))] for word in self._distinct()}
        return self._in_rows(where, rows)

    def _in_rows(self, where: dict[tuple[int, ...], list[tuple[int, int]]], rows: Sequence[tuple[int, ...]]) -> Layout:
        parents = [list(range(-1, len(row) - 1)) for row in rows]
        return self._arrange(where, masks=[1] * len(rows), tails=[list(row) for row in rows], parents=parents)

    def _distinct(self) -> list[tuple[int, ...]]:
        return list(dict.fromkeys(word for label in self.words for word in label))

    def _arrange(
        self,
        where: dict[tuple[int, ...], list[tuple[int, int]]],
        masks: Sequence[int],
        tails: Sequence[Sequence[int]],
        parents: Sequence[Sequence[int]],
    ) -> Layout:
        shape = (len(self.words), max(map(len, self.words)), self.longest)
        piece, real = np.zeros(shape, np.int64), np.zeros(shape, bool)
        place = np.zeros((2, *shape), np.int64)
        for c, label in enumerate(self.words):
            for w, word in enumerate(label):
                piece[c, w, : len(word)] = word
                real[c, w, : len(word)] = True
                place[:, c, w, : len(word)] = np.array(where[word]).T
        columns = max(map(len, tails))
        tail = np.full((len(tails), columns), -1, np.int64)
        depth = np.zeros((len(tails), columns), np.int64)
        sees = np.zeros((len(tails), columns, columns), bool)
        for e, (ids, above) in enumerate(zip(tails, parents, strict=True)):
            tail[e, : len(ids)] = ids
            for k, parent in enumerate(above):  # parents come first
                depth[e, k] = 1 if parent < 0 else depth[e, parent] + 1
                if parent >= 0:
                    sees[e, k] = sees[e, parent]
                sees[e, k, k] = True
        return Layout(piece, real, place[0], place[1], np.array(masks), tail, depth, sees)
