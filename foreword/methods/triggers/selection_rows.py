"""Measure all prompts on the same rows, block by block; a prompt that cannot win any more is read no further."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from foreword.methods.instructions.halving import halve
from foreword.methods.triggers.objective import Objective, row_losses
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.row_block import Block
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded

BLOCK = 16  # rows; between two blocks prompts may be dropped
GROUP = 8  # prompts that are read side by side; the next ones know the best of those before


@final
@dataclass(frozen=True)
class PromptScore:
    """Hold a prompt's mean loss over the pool, the penalty included.

    If the prompt was dropped (not `whole`), its loss is at least `loss` after `race`, and `loss` is infinite after
    `halved`.
    """

    loss: float
    whole: bool


@final
@dataclass(eq=False)
class SelectionRows:
    """Hold blocks of rows. `read` counts rows read with a prompt, gradients not included."""

    blocks: tuple[Block, ...]
    objective: Objective
    read: int = field(default=0)
    base: Prompt | None = None

    @staticmethod
    def build(
        lm: FrozenLM, rows: Sequence[Encoded], labels: Sequence[int], length: int, objective: Objective,
        *, block: int = BLOCK, reuse: bool = True,
    ) -> "SelectionRows":  # fmt: skip
        """Build blocks of the rows, in the order given."""
        parts = [slice(at, at + block) for at in range(0, len(rows), block)]
        blocks = [Block.build(lm, rows[p], labels[p], length, objective, reuse=reuse) for p in parts]
        return SelectionRows(tuple(blocks), objective)

    @property
    def rows(self) -> int:
        return sum(map(len, self.blocks))

    def set_base(self, prompt: Prompt) -> None:
        """Set the prompt that those measured next differ from at few slots."""
        if prompt != self.base:
            for block in self.blocks:
                block.set_base(prompt)
            self.base = prompt

    def losses(self, prompts: Sequence[Prompt]) -> list[float]:
        """Return each prompt's mean loss over all rows."""
        return [m.loss for m in self.race(prompts, [0.0] * len(prompts), float("inf"), shrink=False)]

    def race(
        self, prompts: Sequence[Prompt], penalties: Sequence[float], bound: float, *, shrink: bool = True
    ) -> list[PromptScore]:
        """Measure prompts in this order; one whose rows so far put it above the bound is read no further.

        Row losses are never negative, so a dropped prompt is truly above the bound. With `shrink` the bound falls to
        the best loss so far: the least of all is always whole, and the same as if nothing had been dropped.
        """
        results: list[PromptScore] = []
        for at in range(0, len(prompts), GROUP):
            group = list(range(at, min(at + GROUP, len(prompts))))
            sums = dict.fromkeys(group, 0.0)
            alive = [i for i in group if penalties[i] <= bound]
            for block in self.blocks:
                if not alive:
                    break
                for i, total in zip(alive, self._sums(block, [prompts[i] for i in alive]), strict=True):
                    sums[i] += total
                alive = [i for i in alive if sums[i] / self.rows + penalties[i] <= bound]
            results += [PromptScore(sums[i] / self.rows + penalties[i], i in alive) for i in group]
            if shrink:
                bound = min([bound, *(results[i].loss for i in alive)])
        return results

    def halved(self, prompts: Sequence[Prompt], penalties: Sequence[float], bound: float) -> list[PromptScore]:
        """Measure with a quarter of the evaluations, by successive halving over blocks; `race` then reads the winner.

        The others it does not read: their loss is infinite, since nothing is promised of it.
        """

        def evaluate(cells: Sequence[tuple[int, range]]) -> list[list[float]]:
            results: list[list[float]] = [[] for _ in cells]
            for number, block in enumerate(self.blocks):
                asked = [i for i, (_, blocks) in enumerate(cells) if number in blocks]
                sums = self._sums(block, [prompts[cells[i][0]] for i in asked]) if asked else []
                for i, total in zip(asked, sums, strict=True):
                    results[i].append(-total / len(block) - penalties[cells[i][0]])
            return results

        budget = max(len(prompts), len(prompts) * len(self.blocks) // 4)
        winner = halve(len(prompts), len(self.blocks), budget, evaluate).winner
        [best] = self.race([prompts[winner]], [penalties[winner]], bound, shrink=False)
        return [best if i == winner else PromptScore(float("inf"), False) for i in range(len(prompts))]

    def _sums(self, block: Block, prompts: Sequence[Prompt]) -> list[float]:
        """Return each prompt's sum of losses over a block's rows."""
        self.read += len(prompts) * len(block)
        since = None if self.base is None else [_since(self.base, p, block) for p in prompts]
        score_XBC = block.scores(prompts, since)
        count = len(prompts)
        label_X = block.label_B.repeat(count).to(score_XBC.device)
        loss_XB = row_losses(score_XBC.flatten(0, 1), label_X, self.objective).unflatten(0, (count, -1))
        return loss_XB.double().sum(1).tolist()

    @torch.no_grad()
    def accuracy(self, prompt: Prompt) -> float:
        """Return the share of the rows whose right label scores highest."""
        right = 0
        for block in self.blocks:
            score_BC = block.scores([prompt])[0]
            right += int((score_BC.argmax(1).cpu() == block.label_B).sum())
        return right / self.rows


def _since(base: Prompt, prompt: Prompt, block: Block) -> int:
    """Return the first slot, by columns, at which a prompt differs from the base; the last one if at none."""
    order = block.columns_BT[0].argsort()
    return next((n for n, slot in enumerate(order) if prompt[slot] != base[slot]), len(order) - 1)
