"""Keys and values of rows that go on: each pass adds its own columns and reads all that are there."""

from dataclasses import dataclass
from typing import final

import torch

from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Float, Int, Tensor

SMALLEST = 64  # columns; the room doubles when a row needs more


@final
class RowCache:
    """Rows of any lengths, numbered from 0 without gaps; every layer's keys and values are `(rows, H, columns, K)`.

    Memory is `rows` times the longest row's columns, rounded up to a power of two; tensors are made at their first use,
    with the dtype and on the device of what is put in. Rows of a decoder have what it reads of its encoder in `source`,
    a cache of the same rows: computed once a row, however far the row goes on.
    """

    def __init__(self, layers: int, rows: int, source: "RowCache | None" = None):
        self.rows, self.columns, self.source = rows, 0, source
        self.lengths: list[int] = []
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        own = sum(t.numel() * t.element_size() for t in (*self._keys, *self._values) if t is not None)
        return own + (self.source.bytes if self.source else 0)

    def add(self, prefix: PrefixPrompt | None = None, site: str = "self") -> int:
        """A new row, whose first columns are a prefix's; returns its number."""
        row = len(self.lengths)
        assert row < self.rows, "there is room for another row"
        self.lengths.append(0)
        if self.source is not None:
            self.source.add(prefix, "cross")
        if prefix is not None and prefix.length and site in prefix.sites:
            assert prefix.start == prefix.length or site != "self", "the text that goes on comes after its prefix"
            self.reserve(prefix.length)
            keys_NPHK, values_NPHK = prefix.sites[site]
            for layer, pair in enumerate(zip(keys_NPHK, values_NPHK, strict=True)):
                stored = self._at(layer, pair[0].transpose(0, 1)[None])
                for whole, part_PHK in zip(stored, pair, strict=True):
                    whole[row, :, : prefix.length] = part_PHK.transpose(0, 1).to(whole)
            self.lengths[row] = prefix.length
        return row

    def add_copy(self, other: "RowCache", row: int) -> int:
        """A new row that has what a row of another cache has; returns its number."""
        new, length = len(self.lengths), other.lengths[row]
        assert new < self.rows, "there is room for another row"
        self.lengths.append(0)
        if self.source is not None and other.source is not None:
            self.source.add_copy(other.source, row)
        self.reserve(length)
        for layer, pair in enumerate(zip(other._keys, other._values, strict=True)):
            if pair[0] is None or pair[1] is None:
                continue
            for mine, theirs in zip(self._at(layer, pair[0]), (pair[0], pair[1]), strict=True):
                mine[new, :, :length] = theirs[row, :, :length]
        self.lengths[new] = length
        return new

    def drop(self, row: int) -> None:
        """Take a row out; the last one gets its number."""
        last = len(self.lengths) - 1
        length = self.lengths[last]
        if row != last:
            for whole in (*self._keys, *self._values):
                if whole is not None:
                    whole[row, :, :length] = whole[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()
        if self.source is not None:
            self.source.drop(row)

    def reserve(self, columns: int) -> None:
        """Room for rows of so many columns; what is there stays."""
        if columns <= self.columns:
            return
        before, self.columns = self.columns, max(SMALLEST, 1 << (columns - 1).bit_length())
        for tensors in (self._keys, self._values):
            for layer, whole in enumerate(tensors):
                if whole is not None:
                    tensors[layer] = larger = whole.new_zeros(*whole.shape[:2], self.columns, whole.shape[3])
                    larger[: len(self.lengths), :, :before] = whole[: len(self.lengths)]

    def next(self, first: int, added: list[int], source: list[int] | None = None) -> "CachedRows":
        """The rows from `first` on, to each of which a pass adds so many columns; they count as there from now on.

        `source` are the columns that it adds to what they have of the encoder, None for none.
        """
        rows = range(first, first + len(added))
        start_B = torch.tensor([self.lengths[row] for row in rows])
        longest = max(added)
        self.reserve(max(self.lengths[row] for row in rows) + longest)
        for row, count in zip(rows, added, strict=True):
            self.lengths[row] += count
        columns = max(self.lengths[row] for row in rows)
        beside = None if self.source is None else self.source.next(first, source or [0] * len(added))
        return CachedRows(self, first, start_B, start_B[:, None] + torch.arange(longest), columns, beside)

    def _at(self, layer: int, like_BHSK: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's tensors, beside what is to be put into them."""
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
    """One pass over neighbouring rows of a cache: row b's text stands at `column_BS`, after the `start_B` that it has.

    Padding on the right is written as well; no position sees it, and the row's next columns replace it. `source` are
    the same rows in what a decoder's rows have of its encoder.
    """

    cache: RowCache
    first: int
    start_B: Int[Tensor, "B"]
    column_BS: Int[Tensor, "B S"]
    columns: int
    source: "CachedRows | None" = None

    @property
    def last_B(self) -> Int[Tensor, "B"]:
        """The last column that each row has."""
        return torch.tensor([n - 1 for n in self.cache.lengths[self.first : self.first + len(self.start_B)]])

    def joined(
        self, layer: int, key: Float[Tensor, "B H S K"], value: Float[Tensor, "B H S K"]
    ) -> tuple[Float[Tensor, "B H X K"], Float[Tensor, "B H X K"]]:
        """A layer's keys and values of all columns, the new ones put in: views of the cache. Where none is new, what is
        given tells sizes alone."""
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
