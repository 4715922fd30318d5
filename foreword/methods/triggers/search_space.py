"""Hold what a search works on: the format with slots, its pool of rows, the tokens in use, and how they are written."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from foreword.core.shapes import Int, Tensor
from foreword.errors import DataError
from foreword.methods.triggers.detokenise import Detokeniser
from foreword.methods.triggers.objective import Objective
from foreword.methods.triggers.prompt_slots import Prompt, Slotted, with_slots
from foreword.methods.triggers.row_block import Block
from foreword.methods.triggers.selection_rows import BLOCK, SelectionRows
from foreword.methods.triggers.token_filters import TokenFilter, allowed_ids, scripts_of, surfaces_of
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded
from foreword.tasks.rows import Row, label_of
from foreword.training.contract import Job


@final
@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Hold what one search works on.

    `spare` are training rows outside of the pool, for gradients; `surfaces` are the texts of all tokens.
    """

    lm: FrozenLM
    job: Job
    slotted: Slotted
    pool: SelectionRows
    pool_rows: tuple[Row, ...]
    encoded: tuple[Encoded, ...]
    spare: tuple[Encoded, ...]
    spare_labels: tuple[int, ...]
    allowed_A: Int[Tensor, "A"]
    surfaces: tuple[str, ...]
    writer: Detokeniser
    objective: Objective
    gradient_rows: int
    written: bool  # whether every prompt must be read back from its words as it is

    def readable(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Return for each prompt whether it may be used: if it can be written as words, or always if it need not be."""
        return [t is not None for t in self.writer.texts(prompts)] if self.written else [True] * len(prompts)

    def gradient_blocks(self, step: int) -> Sequence[Block]:
        """Return the rows of one gradient.

        They are drawn from those outside of the pool if there are enough, else from the pool.
        """
        rng = random.Random(f"{self.job.seed} gradient {step}")
        if len(self.spare) >= self.gradient_rows:
            chosen = rng.sample(range(len(self.spare)), self.gradient_rows)
            rows, labels = [self.spare[i] for i in chosen], [self.spare_labels[i] for i in chosen]
            return [Block.build(self.lm, rows, labels, self.slotted.length, self.objective)]
        count = max(1, -(-self.gradient_rows // BLOCK))
        blocks = self.pool.blocks
        return blocks if count >= len(blocks) else [blocks[i] for i in sorted(rng.sample(range(len(blocks)), count))]

    def words(self, prompt: Prompt) -> list[str]:
        """Return the tokens of a prompt as a person reads them."""
        return [self.surfaces[i] or self.lm.tokenizer.convert_ids_to_tokens(i) for i in prompt]


def make_field(lm: FrozenLM, job: Job, config: Any, *, everything: bool = False) -> SearchSpace:
    """Build the search space of a job whose config is an `autoprompt.SearchConfig`; `everything` allows every token.

    Raises: DataError without labelled training rows; ConfigError if no token is left.
    """
    task = job.task
    if not task.train:
        raise DataError(f"Task {task.name!r} has no training rows; {job.method.name} needs some.")
    slotted = with_slots(lm, job.format, config.length)
    encoded = job.encoded_rows.of(lm, slotted.format, task.train)
    order = stratified([label_of(row) for row in task.train], job.seed)
    inside, outside = order[: config.pool_rows], order[config.pool_rows :]
    labels = [label_of(row) for row in task.train]
    pool_rows = tuple(task.train[i] for i in inside)
    own = tuple(encoded[i] for i in inside)
    pool = SelectionRows.build(lm, own, [labels[i] for i in inside], slotted.length, config.objective)
    surfaces = surfaces_of(lm)
    words = frozenset(word for some in job.format.words for word in some)
    texts = (text for row in task.train for text in row.fields.values())
    wanted = TokenFilter(words, scripts_of(texts), config.capitals, config.non_ascii)
    plans = {id(e.plan): e.plan for e in encoded if e.plan is not None and job.format.words}
    pieces = {p for plan in plans.values() for label in plan.words for word in label for p in word if len(word) == 1}
    allowed = allowed_ids(lm, wanted, pieces, surfaces) if not everything else _all_ids(lm, surfaces)
    return SearchSpace(
        lm=lm,
        job=job,
        slotted=slotted,
        pool=pool,
        pool_rows=pool_rows,
        encoded=own,
        spare=tuple(encoded[i] for i in outside),
        spare_labels=tuple(labels[i] for i in outside),
        allowed_A=allowed,
        surfaces=tuple(surfaces),
        writer=Detokeniser.build(lm, slotted, pool_rows, own, [surfaces[i] for i in allowed.tolist()]),
        objective=config.objective,
        gradient_rows=config.gradient_rows,
        written=config.words and not everything,
    )


def stratified(labels: Sequence[int], seed: int) -> list[int]:
    """Return row numbers in an order whose every beginning has the labels in about equal parts, as far as they go."""
    rng = random.Random(f"{seed} pool")
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    for rows in by_label.values():
        rng.shuffle(rows)
    turns = [(n, rng.random(), index) for rows in by_label.values() for n, index in enumerate(rows)]
    return [index for _, _, index in sorted(turns)]


def _all_ids(lm: FrozenLM, surfaces: Sequence[str]) -> Int[Tensor, "A"]:
    import torch

    return torch.arange(min(len(surfaces), lm.dims.vocab))
