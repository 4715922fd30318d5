"""Split rows for a search: some to propose from, others to choose on, none of them a test row (by hash)."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from foreword.errors import DataError
from foreword.tasks.rows import Row
from foreword.tasks.task import Task


@final
@dataclass(frozen=True, eq=False)
class SearchRows:
    """Hold the rows of a search.

    `proposal` rows are shown to the proposer, `selection` rows decide, in the order in which every candidate reads
    them. `left_out` counts training rows whose text is a test row's, or another training row's.
    """

    proposal: tuple[Row, ...]
    selection: tuple[Row, ...]
    left_out: int

    @property
    def block(self) -> int:
        """Return how many labels take turns in the selection rows."""
        return max(1, len({row.label for row in self.selection}))

    def hashes(self, task: Task) -> dict[str, str]:
        """Return the sha256 of each part, order included, as `Task.hashes` makes them; and of the test rows."""
        part = task.with_(train=self.proposal, validation=self.selection).hashes()
        return {"proposal": part["train"], "selection": part["validation"], "test": part["test"]}


def text_hash(row: Row) -> str:
    """Return the hash of a row's texts and options, by which two rows are the same or not."""
    return hashlib.sha256(row.text().encode()).hexdigest()


def search_rows(task: Task, seed: int, most_proposal: int, most_selection: int) -> SearchRows:
    """Draw half of the training rows of each label for proposals, and the rest to choose on; labels take turns in both.

    The seed decides the draw. There are at most `most_proposal` rows for proposals, and at most `most_selection` of the
    others to choose on.

    Raises: DataError if fewer than two rows are left.
    """
    tests = {text_hash(row) for row in task.test}
    distinct = {text_hash(row): row for row in reversed(task.train)}
    rows = [row for key, row in reversed(distinct.items()) if key not in tests]
    left_out = len(task.train) - len(rows)
    if len(rows) < 2:
        raise DataError(
            f"{task.name} has {len(rows)} training rows with a text of their own that is no test row's; a search needs "
            "two or more: some to propose from, others to choose on."
        )
    random.Random(f"search {seed}").shuffle(rows)
    proposal: list[Row] = []
    selection: list[Row] = []
    odd = 0
    for pool in _by_label(rows).values():  # half of each, so that a rare label is in both where it can be
        cut = (len(pool) + odd) // 2
        odd ^= len(pool) % 2
        proposal += pool[:cut]
        selection += pool[cut:]
    proposal = _in_turn(proposal)
    selection = _in_turn(selection + proposal[most_proposal:])
    return SearchRows(tuple(proposal[:most_proposal]), tuple(selection[:most_selection]), left_out)


def _by_label(rows: Sequence[Row]) -> dict[int | None, list[Row]]:
    pools: dict[int | None, list[Row]] = {}
    for row in rows:
        pools.setdefault(row.label, []).append(row)
    return pools


def _in_turn(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with labels in turn, as long as a label has rows left; the order within a label stays."""
    pools = _by_label(rows)
    found: list[Row] = []
    for turn in range(max(map(len, pools.values()), default=0)):
        found += [pool[turn] for pool in pools.values() if turn < len(pool)]
    return found
