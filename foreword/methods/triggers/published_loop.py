"""Run the loop of Shin et al. 2020 as their code does, for comparison: one random slot, new batches, accuracy decides.

Its faults are kept: candidates come from one slot's gradient, are judged by accuracy on one draw of batches while the
gradient is of likelihood, ties never win, and the first swap that is accepted replaces the start, whatever it scores on
development rows.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from foreword.methods.triggers.gradients import embeddings_of, first_order, slot_gradient
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.row_block import Block
from foreword.methods.triggers.search_space import SearchSpace

BATCH = 32


@final
@dataclass(eq=False)
class PaperState:
    """Hold the state of the loop. `kept` is the accepted prompt with the best development accuracy."""

    prompt: Prompt
    kept: Prompt
    kept_accuracy: float = float("-inf")
    step: int = 0
    accepted: int = 0
    read: int = 0
    trace: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "prompt": list(self.prompt), "kept": list(self.kept), "trace": self.trace or []}

    @staticmethod
    def from_json(kept: dict[str, Any]) -> "PaperState":
        return PaperState(**{**kept, "prompt": tuple(kept["prompt"]), "kept": tuple(kept["kept"])})


@dataclass(frozen=True, eq=False)
class PaperRows:
    """Draw batches of 32 from all training rows.

    There are `accumulation` of them for a gradient, and as many, drawn anew, for a judgement.
    """

    field: SearchSpace
    accumulation: int
    development: Callable[[Prompt], float]

    def blocks(self, step: int, what: str) -> list[Block]:
        field = self.field
        rows = [*field.encoded, *field.spare]
        labels = [int(y) for b in field.pool.blocks for y in b.label_B] + list(field.spare_labels)
        order = random.Random(f"{field.job.seed} paper {what} {step}").sample(range(len(rows)), len(rows))
        parts = [order[at : at + BATCH] for at in range(0, len(order), BATCH)][: self.accumulation]
        return [
            Block.build(
                field.lm, [rows[i] for i in part], [labels[i] for i in part], field.slotted.length, "likelihood",
                reuse=False,
            )
            for part in parts
        ]  # fmt: skip


def first_prompt(field: SearchSpace) -> Prompt:
    """Return masks in every slot, or for a causal model, which has none, the first token of "the"."""
    mask = field.lm.tokenizer.mask_token_id if field.lm.kind == "masked" else None
    if mask is None:
        mask = field.slotted.encoder.pieces.after(("a",), [" the"])[0][0]
    return (mask,) * field.slotted.length


def paper_step(rows: PaperRows, state: PaperState, candidates: int) -> None:
    """Run one iteration: a gradient, one random slot, and the best tokens there, judged on another draw of rows."""
    field, lm = rows.field, rows.field.lm
    now = state.prompt
    embed_PD = embeddings_of(lm, now)
    blocks = rows.blocks(state.step, "gradient")
    loss, grad_PD = slot_gradient(lm, blocks, embed_PD, "likelihood")
    slot = random.Random(f"{field.job.seed} paper slot {state.step}").randrange(len(now))
    change_A = first_order(lm, grad_PD, now, field.allowed_A)[slot]
    order = torch.argsort(change_A, stable=True)[:candidates].tolist()
    tokens = [int(field.allowed_A[i]) for i in order if float(change_A[i]) < float("inf")]
    prompts = [(*now[:slot], token, *now[slot + 1 :]) for token in tokens]
    right = [0] * (1 + len(prompts))
    for block in rows.blocks(state.step, "judge"):
        for number, prompt in enumerate([now, *prompts]):  # one at a time, as they do
            score_BC = block.scores([prompt])[0].cpu()
            right[number] += int((score_BC.argmax(1) == block.label_B).sum())
            state.read += len(block)
    best = max(range(len(prompts)), key=lambda i: right[i + 1]) if prompts else 0
    accepted = bool(prompts) and right[best + 1] > right[0]
    state.step += 1
    told = {"step": state.step, "search": 1, "prompt": list(now), "loss": loss, "slot": [slot]}
    if prompts:
        told |= {
            "old": field.words((now[slot],)),
            "new": field.words((tokens[best],)),
            "tried": list(prompts[best]),
            "predicted": float(change_A[order[best]]),
            "true": None,
            "right": [right[0], right[best + 1]],
            "rank": best,
        }
    state.trace = [*(state.trace or []), {**told, "accepted": accepted, "candidates": len(prompts)}]
    if accepted:
        state.prompt = prompts[best]
        state.accepted += 1
        accuracy = rows.development(state.prompt)
        if accuracy > state.kept_accuracy:
            state.kept, state.kept_accuracy = state.prompt, accuracy
