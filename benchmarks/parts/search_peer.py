"""The loop of Shin et al. 2020 as their code runs it, ported: whole rows, all positions, the whole vocabulary, one
candidate at a time, random batches padded to their longest row, weights that collect gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foreword.methods.triggers.prompt_slots import Prompt, columns_of
from foreword.models.encoding.batch import Encoded


@dataclass(frozen=True, eq=False)
class PaperLoop:
    """One step over rows with open slots. `labels` are the label of each row, as in the rows' own plans."""

    model: Any
    rows: Sequence[Encoded]
    labels: Sequence[int]
    batch: int = 32

    def batches(self) -> list[list[int]]:
        """In the order given, which is random."""
        return [[*range(at, min(at + self.batch, len(self.rows)))] for at in range(0, len(self.rows), self.batch)]

    def losses(self, prompt: Prompt, chosen: Sequence[int], embed_PD: torch.Tensor | None = None) -> torch.Tensor:
        """-log of the label words' probability for each row, read from the logits of every position."""
        longest = max(len(self.rows[i].ids_S) for i in chosen)
        ids_BS = torch.zeros(len(chosen), longest, dtype=torch.long)
        attend_BS = torch.zeros(len(chosen), longest, dtype=torch.long)
        slot_BS = torch.full((len(chosen), longest), -1)
        for b, i in enumerate(chosen):
            row = self.rows[i]
            ids_BS[b, : len(row.ids_S)] = torch.from_numpy(row.ids_S)
            ids_BS[b, columns_of(row.slot_S, len(prompt))] = torch.tensor(prompt)
            slot_BS[b, : len(row.ids_S)] = torch.from_numpy(row.slot_S)
            attend_BS[b, : len(row.ids_S)] = 1
        given: dict[str, Any] = {"input_ids": ids_BS}
        if embed_PD is not None:
            text_BSD = self.model.get_input_embeddings()(ids_BS)
            row_X, column_X = (slot_BS >= 0).nonzero(as_tuple=True)
            given = {"inputs_embeds": text_BSD.index_put((row_X, column_X), embed_PD[slot_BS[row_X, column_X]])}
        logits_BSV = self.model(**given, attention_mask=attend_BS).logits
        found = []
        for b, i in enumerate(chosen):
            row = self.rows[i]
            assert row.plan is not None, "rows have label words"
            words = [word[0] for word in row.plan.words[self.labels[i]]]
            found.append(-logits_BSV[b, row.answer].log_softmax(-1)[words].logsumexp(0))
        return torch.stack(found)

    def gradient(self, prompt: Prompt) -> torch.Tensor:
        """The slots' gradient; every weight gets one as well."""
        self.model.requires_grad_(True)
        leaf = self.model.get_input_embeddings()(torch.tensor(prompt)).detach().clone().requires_grad_()
        for chosen in self.batches():
            (self.losses(prompt, chosen, leaf).sum() / len(self.rows)).backward()
        self.model.zero_grad(set_to_none=True)
        self.model.requires_grad_(False)
        assert leaf.grad is not None, "every row has slots"
        return leaf.grad

    @torch.no_grad()
    def mean_loss(self, prompt: Prompt) -> float:
        total = sum(float(self.losses(prompt, chosen).double().sum()) for chosen in self.batches())
        return total / len(self.rows)

    def step(self, prompt: Prompt, candidates: Sequence[Prompt]) -> list[float]:
        """A gradient, the prompt's own loss, then each candidate's."""
        self.gradient(prompt)
        return [self.mean_loss(p) for p in (prompt, *candidates)][1:]
