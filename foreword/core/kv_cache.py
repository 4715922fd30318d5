"""Keep keys and values of rows that grow: each pass adds its columns and reads all columns of its rows."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

import torch

from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Float, Int, Tensor

SMALLEST = 64  # columns; the room doubles when a row needs more
SHARED = 64  # columns from which a prefix kept once for its rows is read faster than one kept with each


@final
@dataclass(frozen=True, eq=False)
class Trunk:
    """Hold a prefix that rows have in common, kept once: each layer's keys and values."""

    keys_NHPK: Float[Tensor, "N H P K"]
    values_NHPK: Float[Tensor, "N H P K"]

    @staticmethod
    def of(prefix: PrefixPrompt) -> "Trunk":
        keys_NPHK, values_NPHK = prefix.sites["self"]
        return Trunk(keys_NPHK.transpose(1, 2).contiguous(), values_NPHK.transpose(1, 2).contiguous())

    @property
    def length(self) -> int:
        return self.keys_NHPK.shape[2]

    @property
    def bytes(self) -> int:
        return 2 * self.keys_NHPK.numel() * self.keys_NHPK.element_size()


@final
class RowCache:
    """Hold rows of any lengths, numbered from 0; every layer's keys and values are `(rows, H, columns, K)`.

    Numbers have no gaps: when a row is dropped, the last one takes its number.

    Memory is `rows` times the longest row's columns, rounded up to a power of two; tensors are made at their first use,
    with the dtype and on the device of what is put in. A prefix that several rows share is none of their columns: it is
    kept once, for as long as one of them is there. For rows of a decoder, `source` is a cache of the same rows with
    what the decoder reads of its encoder: computed once a row, however long the row grows.

    With `texts` the embeddings of each row's text are kept too, for models that must read a row again once it is long.
    """

    def __init__(self, layers: int, rows: int, source: "RowCache | None" = None, *, texts: bool = False):
        self.rows, self.columns, self.source = rows, 0, source
        self._texts: list[list[Tensor]] | None = [] if texts else None
        self.lengths: list[int] = []  # of each row's own columns
        self._prefix_columns: list[int] = []  # how many of them are a prefix's
        self.trunk_of: list[Hashable | None] = []
        self.trunks: dict[Hashable, Trunk] = {}
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        own = sum(t.numel() * t.element_size() for t in (*self._keys, *self._values) if t is not None)
        shared = sum(trunk.bytes for trunk in self.trunks.values())
        texts = sum(t.numel() * t.element_size() for parts in self._texts or () for t in parts)
        return own + shared + texts + (self.source.bytes if self.source else 0)

    def add(self, prefix: PrefixPrompt | None = None, shared: Hashable | None = None, site: str = "self") -> int:
        """Add a row whose first columns are a prefix's; return its number.

        Rows with the same key `shared` have the same prefix, which is kept once if it has at least `SHARED` columns
        (not in a decoder, whose encoder has most of what a row reads).
        """
        row = self._new()
        if self.source is not None:
            self.source.add(prefix, site="cross")
        if prefix is not None and prefix.length and site in prefix.sites:
            assert prefix.start == prefix.length or site != "self", "the text that goes on comes after its prefix"
            if shared is not None and self.source is None and prefix.length >= SHARED:
                if shared not in self.trunks:
                    self.trunks[shared] = Trunk.of(prefix)
                self.trunk_of[row] = shared
                return row
            self.reserve(prefix.length)
            keys_NPHK, values_NPHK = prefix.sites[site]
            for layer, pair in enumerate(zip(keys_NPHK, values_NPHK, strict=True)):
                stored = self._at(layer, pair[0].transpose(0, 1)[None])
                for whole, part_PHK in zip(stored, pair, strict=True):
                    whole[row, :, : prefix.length] = part_PHK.transpose(0, 1).to(whole)
            self.lengths[row] = self._prefix_columns[row] = prefix.length
        return row

    def add_copy(self, other: "RowCache", row: int) -> int:
        """Add a row that has what a row of another cache has; return its number."""
        new, length = self._new(), other.lengths[row]
        if self.source is not None and other.source is not None:
            self.source.add_copy(other.source, row)
        self.reserve(length)
        for layer, pair in enumerate(zip(other._keys, other._values, strict=True)):
            if pair[0] is None or pair[1] is None:
                continue
            for mine, theirs in zip(self._at(layer, pair[0]), (pair[0], pair[1]), strict=True):
                mine[new, :, :length] = theirs[row, :, :length]
        self.lengths[new], self._prefix_columns[new] = length, other._prefix_columns[row]
        if self._texts is not None and other._texts is not None:
            self._texts[new] = list(other._texts[row])
        shared = other.trunk_of[row]
        if shared is not None:
            self.trunks.setdefault(shared, other.trunks[shared])
            self.trunk_of[new] = shared
        return new

    def _new(self) -> int:
        row = len(self.lengths)
        assert row < self.rows, "there is room for another row"
        self.lengths.append(0)
        self._prefix_columns.append(0)
        self.trunk_of.append(None)
        if self._texts is not None:
            self._texts.append([])
        return row

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        last = len(self.lengths) - 1
        length = self.lengths[last]
        if row != last:
            for whole in (*self._keys, *self._values):
                if whole is not None:
                    whole[row, :, :length] = whole[last, :, :length]
            self.lengths[row] = length
        self._prefix_columns[row] = self._prefix_columns[last]
        self._prefix_columns.pop()
        shared, self.trunk_of[row] = self.trunk_of[row], self.trunk_of[last]
        self.lengths.pop()
        self.trunk_of.pop()
        if self._texts is not None:
            self._texts[row] = self._texts[last]
            self._texts.pop()
        if shared is not None and shared not in self.trunk_of:
            del self.trunks[shared]
        if self.source is not None:
            self.source.drop(row)

    def reserve(self, columns: int) -> None:
        """Make room for rows of so many columns; what is stored stays."""
        if columns <= self.columns:
            return
        before, self.columns = self.columns, max(SMALLEST, 1 << (columns - 1).bit_length())
        for tensors in (self._keys, self._values):
            for layer, whole in enumerate(tensors):
                if whole is not None:
                    tensors[layer] = larger = whole.new_zeros(*whole.shape[:2], self.columns, whole.shape[3])
                    larger[: len(self.lengths), :, :before] = whole[: len(self.lengths)]

    def next(self, first: int, added: list[int], source: list[int] | None = None) -> "CachedRows":
        """Return a pass over the rows from `first` on that adds `added[i]` columns to the i-th; they count from now on.

        `source` are the numbers of columns that the pass adds to what each row has of the encoder; None adds none.
        """
        rows = range(first, first + len(added))
        own_B = torch.tensor([self.lengths[row] for row in rows])
        by_trunk: dict[Hashable, list[int]] = {}
        ahead_B = torch.zeros_like(own_B)
        for index, row in enumerate(rows):
            shared = self.trunk_of[row]
            if shared is not None:
                by_trunk.setdefault(shared, []).append(index)
                ahead_B[index] = self.trunks[shared].length
        trunks = tuple((self.trunks[shared], torch.tensor(some)) for shared, some in by_trunk.items())
        longest = max(added)
        self.reserve(max(self.lengths[row] for row in rows) + longest)
        for row, count in zip(rows, added, strict=True):
            self.lengths[row] += count
        columns = max(self.lengths[row] for row in rows)
        column_BS = own_B[:, None] + torch.arange(longest)
        beside = None if self.source is None else self.source.next(first, source or [0] * len(added))
        return CachedRows(self, first, own_B + ahead_B, column_BS, columns, ahead_B, trunks, beside)

    def note(self, row: int, embed_SD: Float[Tensor, "S D"]) -> None:
        """Keep the embeddings that a pass adds to a row's text, if texts are kept."""
        if self._texts is not None:
            self._texts[row].append(embed_SD.detach())

    def text(self, row: int) -> Float[Tensor, "S D"] | None:
        """Return the embeddings of a row's text as kept, after its prefix, (S, D); None if there are none."""
        parts = [] if self._texts is None else self._texts[row]
        return torch.cat(parts) if parts else None

    def again(self, row: int, count: int) -> "CachedRows":
        """Return a pass over one row from the start of its text that replaces the columns of its first `count` tokens.

        The row may have more columns by now: those of the pass that is under way.
        """
        shared = self.trunk_of[row]
        ahead = 0 if shared is None else self.trunks[shared].length
        first = self._prefix_columns[row]
        trunks = () if shared is None else ((self.trunks[shared], torch.zeros(1, dtype=torch.long)),)
        column_BS = first + torch.arange(count)[None]
        return CachedRows(
            self, row, torch.tensor([first + ahead]), column_BS, first + count, torch.tensor([ahead]), trunks
        )

    def _at(self, layer: int, like_BHSK: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, made or moved to fit `like_BHSK`, which is to be put into them."""
        pair = []
        for tensors in (self._keys, self._values):
            whole = tensors[layer]
            if whole is None:
                heads, size = like_BHSK.shape[1], like_BHSK.shape[3]
                # Zeros, not what the memory held: a NaN in a column that no row has would count, though masked.
                whole = like_BHSK.new_zeros(self.rows, heads, self.columns, size)
            elif whole.device != like_BHSK.device:
                whole = whole.to(like_BHSK.device)
            tensors[layer] = whole
            pair.append(whole)
        return pair[0], pair[1]


@final
@dataclass(frozen=True, eq=False)
class CachedRows:
    """Describe one pass over neighbouring rows of a cache: row b's text starts at position `start_B`, after all it has.

    The pass writes to the columns `column_BS` of each row; `ahead_B` positions before a row's first column are those of
    a prefix that it shares, and `trunks` says which rows (by their number in the pass) share which prefix. Padding on
    the right is written as well; no position sees it, and the row's next columns replace it. `source` is the pass over
    the same rows in what a decoder's rows have of its encoder.
    """

    cache: RowCache
    first: int
    start_B: Int[Tensor, "B"]
    column_BS: Int[Tensor, "B S"]
    columns: int
    ahead_B: Int[Tensor, "B"]
    trunks: tuple[tuple[Trunk, Int[Tensor, "_"]], ...] = ()
    source: "CachedRows | None" = None

    @property
    def last_B(self) -> Int[Tensor, "B"]:
        """Return the last column that each row has."""
        return torch.tensor([n - 1 for n in self.cache.lengths[self.first : self.first + len(self.start_B)]])

    def joined(
        self, layer: int, key: Float[Tensor, "B H S K"], value: Float[Tensor, "B H S K"]
    ) -> tuple[Float[Tensor, "B H X K"], Float[Tensor, "B H X K"]]:
        """Put a layer's new keys and values into the cache; return those of all the rows' own columns, as views.

        If the pass has no new columns, `key` and `value` only give the sizes.
        """
        rows = len(self.start_B)
        at_B1 = torch.arange(rows, device=key.device)[:, None]
        column_BS = self.column_BS.to(key.device)
        read = []
        for whole, new in zip(self.cache._at(layer, key), (key, value), strict=True):
            own = whole[self.first : self.first + rows]
            if column_BS.shape[1]:
                own.transpose(1, 2)[at_B1, column_BS] = new.transpose(1, 2).to(own.dtype)
            read.append(own[:, :, : self.columns])
        return read[0], read[1]
