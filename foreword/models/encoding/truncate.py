"""Choose which pieces of an over-long row are cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from foreword.core.format import Truncate


@final
@dataclass(frozen=True)
class Part:
    """Hold the pieces of one shortenable field, as numbers within item `item` of the row."""

    item: int
    name: str
    pieces: tuple[int, ...]

    def taken(self, count: int, truncate: Truncate) -> tuple[int, ...]:
        """Return `count` pieces from the tail, the head or the middle of the field."""
        if truncate == "head":
            return self.pieces[:count]
        if truncate == "middle":
            start = (len(self.pieces) - count + 1) // 2
            return self.pieces[start : start + count]
        return self.pieces[len(self.pieces) - count :]


def which(text: str, spans: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    """Return the numbers of the pieces that lie wholly within text[start:end]; the spaces that a word begins with do
    not count."""
    inside = []
    for number, (a, b) in enumerate(spans):
        piece = text[a:b]
        a += len(piece) - len(piece.lstrip()) if piece.strip() else 0
        if start <= a < b <= end:
            inside.append(number)
    return tuple(inside)


def share_out(lengths: Sequence[int], cut: int) -> list[int]:
    """Return how many pieces each field loses: the longest is cut down first, then the longest two, and so on."""
    low, high = 0, max(lengths, default=0)
    while low < high:  # the lowest level that takes no more than `cut`
        level = (low + high) // 2
        if sum(max(0, n - level) for n in lengths) <= cut:
            high = level
        else:
            low = level + 1
    shares = [max(0, n - low) for n in lengths]
    rest = cut - sum(shares)
    for i, n in enumerate(lengths):
        if rest and n - shares[i] == low and n:
            shares[i] += 1
            rest -= 1
    return shares
