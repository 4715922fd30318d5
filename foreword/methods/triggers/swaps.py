"""Propose prompts to try next: those whose first-order change is lowest, over all slots, none of them twice."""

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import final

import torch

from foreword.core.shapes import Float, Int, Tensor
from foreword.methods.triggers.prompt_slots import Prompt

TOP = 32  # tokens a slot that swaps of several slots are drawn from
Readable = Callable[[Sequence[Prompt]], Sequence[bool]]  # which prompts are read back from their words as they are


@final
@dataclass(frozen=True)
class SwappedPrompt:
    """Hold a prompt to try, the predicted change of loss, the slots that differ, and its rank among those proposed."""

    prompt: Prompt
    slots: tuple[int, ...]
    predicted: float
    rank: int


class _Singles:
    """Make all single swaps in the order of their predicted change, each when it is asked for."""

    def __init__(self, change_PA: Tensor, prompt: Prompt, allowed_A: Tensor):
        self._change = change_PA.flatten()
        self._order = torch.argsort(self._change, stable=True)
        self._count = int(torch.isfinite(self._change).sum())
        self._prompt, self._allowed = prompt, allowed_A

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> SwappedPrompt:
        at = int(self._order[index])
        slot, token = divmod(at, len(self._allowed))
        prompt = (*self._prompt[:slot], int(self._allowed[token]), *self._prompt[slot + 1 :])
        return SwappedPrompt(prompt, (slot,), float(self._change[at]), index)


def propose(
    change_PA: Float[Tensor, "P A"],
    prompt: Prompt,
    allowed_A: Int[Tensor, "A"],
    count: int,
    *,
    seen: Container[Prompt],
    readable: Readable | None = None,
    swaps: int = 1,
    rng: random.Random | None = None,
) -> list[SwappedPrompt]:
    """Return at most `count` prompts, best first; ties go to the lower slot, then the lower token.

    If `swaps` is above 1 (annealed by the caller), half of them change `swaps` slots at once. Prompts in `seen`, and
    those that are not `readable`, are left out.
    """
    results: dict[Prompt, SwappedPrompt] = {}
    if swaps > 1 and rng is not None:
        drawn = _several(change_PA, prompt, allowed_A, count, min(swaps, len(prompt)), rng)
        _take(results, drawn, count // 2, seen, readable)
    _take(results, _Singles(change_PA, prompt, allowed_A), count - len(results), seen, readable)
    ordered = sorted(results.values(), key=lambda c: c.predicted)
    return [SwappedPrompt(c.prompt, c.slots, c.predicted, rank) for rank, c in enumerate(ordered)]


def _take(
    found: dict[Prompt, SwappedPrompt], given: "Sequence[SwappedPrompt] | _Singles", count: int,
    seen: Container[Prompt], readable: Readable | None,
) -> None:  # fmt: skip
    """Move up to `count` new candidates to `found`, checked in batches of twice as many as are still wanted."""
    wanted = len(found) + count
    at = 0
    while len(found) < wanted and at < len(given):
        part = [given[i] for i in range(at, min(len(given), at + 2 * (wanted - len(found))))]
        at += len(part)
        fresh = list({c.prompt: c for c in part if c.prompt not in seen and c.prompt not in found}.values())
        good = readable([c.prompt for c in fresh]) if readable and fresh else [True] * len(fresh)
        for candidate, able in zip(fresh, good, strict=True):
            if able and len(found) < wanted:
                found[candidate.prompt] = candidate


def _several(
    change_PA: Tensor, prompt: Prompt, allowed_A: Tensor, count: int, swaps: int, rng: random.Random
) -> list[SwappedPrompt]:
    """Draw swaps of several slots at once, each token from the best of its slot; return them best first."""
    top = min(TOP, change_PA.shape[1])
    best_PK = change_PA.topk(top, largest=False, sorted=True)
    drawn = []
    for _ in range(count):
        new, predicted = list(prompt), 0.0
        slots = tuple(sorted(rng.sample(range(len(prompt)), swaps)))
        for slot in slots:
            k = rng.randrange(top)
            new[slot] = int(allowed_A[best_PK.indices[slot, k]])
            predicted += float(best_PK.values[slot, k])
        if predicted < float("inf"):
            drawn.append(SwappedPrompt(tuple(new), slots, predicted, 0))
    return sorted(drawn, key=lambda c: c.predicted)
