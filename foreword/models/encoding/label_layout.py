"""Lay out label words as pieces, and decide where in a row each piece is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from foreword.core.shapes import Bool, Int
from foreword.models.base import Kind

Words = tuple[tuple[tuple[int, ...], ...], ...]  # the pieces of each word of each label
# What one pass over a row may take at most; a plan that takes more is read in parts.
COLUMNS = 1024  # columns of a trie, whose mask grows with their square
PASSES = 32  # model rows of a row
CELLS = 2**22  # columns read times the distinct pieces that are looked up there
FEW = 512  # pieces of all words, which are within the limits whatever they are
TABLE = 2**18  # labels times words times pieces, of a plan's padded tables


@final
@dataclass(frozen=True, eq=False)
class Layout:
    """Hold which piece is read where. A row becomes `passes` model rows; piece n of word w of label c is `piece_CWn`,
    read in model row `pass_CWn` at `read_CWn` columns after the answer.

    A masked model's pass e has `masks_E[e]` masks in place of the answer. A causal model's pass e has the pieces
    `tail_EK` (-1 where there is none) after the text, at depth `depth_EK` below it; each continues column `above_EK` of
    them (-1: the text).
    """

    piece_CWn: Int[np.ndarray, "C W n"]
    real_CWn: Bool[np.ndarray, "C W n"]
    pass_CWn: Int[np.ndarray, "C W n"]
    read_CWn: Int[np.ndarray, "C W n"]
    masks_E: Int[np.ndarray, "E"]
    tail_EK: Int[np.ndarray, "E K"]
    depth_EK: Int[np.ndarray, "E K"]
    above_EK: Int[np.ndarray, "E K"]

    @property
    def passes(self) -> int:
        return self.masks_E.shape[0]

    @cached_property
    def grow(self) -> int:
        """Return the largest number of columns added to the row."""
        return int(self.masks_E.max()) - 1 + self.tail_EK.shape[1]

    @cached_property
    def pieces(self) -> int:
        """Return the number of distinct pieces that are looked up."""
        return len(np.unique(self.piece_CWn[self.real_CWn]))

    @cached_property
    def chain(self) -> bool:
        """Return whether every piece continues the one before it, so that causal attention alone is right."""
        column_K = np.arange(self.tail_EK.shape[1])
        return bool(((self.above_EK == column_K - 1) | (self.tail_EK < 0)).all())

    @property
    def sees_EKK(self) -> Bool[np.ndarray, "E K K"]:
        """Return which pieces see which: each sees itself and those that it continues. The array is large, so it is not
        kept."""
        passes, columns = self.tail_EK.shape
        sees = np.zeros((passes, columns, columns), bool)
        for e in range(passes):
            for k in range(int((self.tail_EK[e] >= 0).sum())):  # parents come first
                if self.above_EK[e, k] >= 0:
                    sees[e, k] = sees[e, self.above_EK[e, k]]
                sees[e, k, k] = True
        return sees


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """Hold plans of some of the words each, in which every word is a label of its own, and the label of each word in
    the whole plan, in the order of the words."""

    plans: tuple["LabelPlan", ...]
    label_W: Int[np.ndarray, "W"]


@final
@dataclass(frozen=True, eq=False)
class LabelPlan:
    """Hold the label words of a row as pieces. Rows with the same labels share one plan, and its layouts are made once.

    `single` is true if every word of every label is one piece: then logits rank labels as log-probabilities do, and no
    sum over the vocabulary is needed, unless the plan is `normalised` because the likelihood of a text is asked for.
    `shift` is added to the labels' log-scores, which are then divided by `temperature`.
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
        """Return the number of pieces of the longest word."""
        return max(len(word) for label in self.words for word in label)

    @property
    def labels(self) -> int:
        return len(self.words)

    @property
    def grow(self) -> int:
        """Return the largest number of columns that one pass adds to a row."""
        return max(layout.grow for layout in self._layouts())

    def cost(self, length: int) -> int:
        """Return the largest number of columns, of all model rows together, that one pass takes over a row of `length`
        columns."""
        return max((length + layout.grow) * layout.passes for layout in self._layouts())

    def tokens(self, length: int) -> int:
        """Return the number of columns, of all model rows together, that all passes take over a row of `length`
        columns."""
        return sum((length + layout.grow) * layout.passes for layout in self._layouts())

    def _layouts(self) -> list[Layout]:
        parts = self.parts()
        return [self.layout()] if parts is None else [plan.layout() for plan in parts.plans]

    def parts(self, trie: bool = True) -> Parts | None:
        """Return the parts in which the plan's words are read, so that no pass takes more than the limits above, or
        None if the plan is read whole."""
        return self._trie_parts if trie or self.kind == "masked" else self._row_parts

    @cached_property
    def _trie_parts(self) -> Parts | None:
        return self._cut(trie=True)

    @cached_property
    def _row_parts(self) -> Parts | None:
        return self._cut(trie=False)

    def _cut(self, trie: bool) -> Parts | None:
        """Divide the words into parts: words with a common beginning, or for a masked model words of one length, come
        to one part if it has room. Return None if the plan is read whole."""
        words = [(word, c) for c, label in enumerate(self.words) for word in label]
        masked = self.kind == "masked"
        table = len(self.words) * max(map(len, self.words)) * self.longest
        if (trie or masked) and table <= TABLE and sum(len(word) for word, _ in words) <= FEW:
            return None
        words.sort(key=lambda one: (len(one[0]) if masked else 0, one[0]))
        groups: list[list[tuple[tuple[int, ...], int]]] = []
        last: tuple[int, ...] = ()
        columns = longest = 0
        starts: set[int | tuple[int, ...]] = set()
        ids: set[int] = set()
        for word, c in words:
            shared = next((n for n, (a, b) in enumerate(zip(word, last, strict=False)) if a != b), len(last))
            # In this order a word shares its columns with the one before it; a word's last piece has none.
            more = max(0, len(word) - 1 - min(shared, max(0, len(last) - 1)))
            start = len(word) if masked else word[:-1]
            passes = len(starts) + (start not in starts) if masked or not trie else 1
            deep = max(longest, len(word))
            reads = columns + more + 1 if trie and not masked else passes * deep
            full = (
                (trie and not masked and columns + more > COLUMNS)
                or passes > PASSES
                or reads * (len(ids) + len(word)) > CELLS
                or (len(groups[-1]) + 1 if groups else 0) * deep > TABLE
            )
            if not groups or full:
                groups.append([])
                columns, more, deep = 0, len(word) - 1, len(word)
                starts, ids = set(), set()
            groups[-1].append((word, c))
            columns, longest, last = columns + more, deep, word
            starts.add(start)
            ids.update(word)
        if len(groups) == 1 and table <= TABLE:
            return None
        normalised = self.normalised or not self.single
        plans = [LabelPlan(self.kind, tuple((word,) for word, _ in group), self.mean, normalised) for group in groups]
        return Parts(tuple(plans), np.array([c for group in groups for _, c in group]))

    def layout(self, trie: bool = True, *, apart: bool = False) -> Layout:
        """Return the masked layout, or the causal one, as a trie or with a model row for each word that needs one. If
        `apart`, each word has a row that is no longer than the word needs."""
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
        """Return the layout in which all words share one model row: each distinct beginning of a longer word is one
        column."""
        nodes: dict[tuple[int, int], int] = {}  # a piece after a column (-1: the text), and the column it has
        where: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for word in sorted(self._distinct(), key=len):
            above = -1
            where[word] = [(0, 0)]
            for piece in word[:-1]:
                above = nodes.setdefault((above, piece), len(nodes))
                where[word].append((0, above + 1))
        tail, parents = [piece for _, piece in nodes], [above for above, _ in nodes]
        return self._arrange(where, masks=[1], tails=[tail], parents=[parents])

    @cached_property
    def _rows(self) -> Layout:
        """Return the layout with a model row for each beginning of a word that is not itself the beginning of
        another."""
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
        """Return the layout with a model row for each beginning of a word."""
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
        above = np.full((len(tails), columns), -1, np.int64)
        for e, (ids, own) in enumerate(zip(tails, parents, strict=True)):
            tail[e, : len(ids)], above[e, : len(ids)] = ids, own
            for k, parent in enumerate(own):  # parents come first
                depth[e, k] = 1 if parent < 0 else depth[e, parent] + 1
        return Layout(piece, real, place[0], place[1], np.array(masks), tail, depth, above)
