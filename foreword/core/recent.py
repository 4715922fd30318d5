"""Keep the values that were used last, up to a limit in bytes."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar, final

K = TypeVar("K")
V = TypeVar("V")
Part = tuple[object, int]  # what values may share, and its bytes


@final
class Recent(Generic[K, V]):
    """Keep values up to `limit` bytes and drop the least recently used first; not thread-safe.

    Parts that several values share count once.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes, self.evictions = limit, 0, 0
        self._entries: OrderedDict[K, tuple[V, int, Sequence[Part]]] = OrderedDict()
        self._users: Counter[int] = Counter()  # of each part, by its identity

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value and mark it as used; None if it is not kept."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size: int, parts: Sequence[Part] = ()) -> None:
        """Keep a value of `size` bytes and its parts, unless it is larger than the whole limit."""
        self.drop(key)
        if size + sum(part_size for _, part_size in parts) > self.limit:
            return
        self._entries[key] = (value, size, parts)
        self.bytes += size
        for part, part_size in parts:
            self.bytes += 0 if self._users[id(part)] else part_size
            self._users[id(part)] += 1
        while self.bytes > self.limit:
            self.drop(next(iter(self._entries)))
            self.evictions += 1

    def drop(self, key: K) -> None:
        """Forget a value, and those of its parts that no other value has."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        _, size, parts = entry
        self.bytes -= size
        for part, part_size in parts:
            self._users[id(part)] -= 1
            if not self._users[id(part)]:
                del self._users[id(part)]
                self.bytes -= part_size
