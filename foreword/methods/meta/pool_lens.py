"""Read rows with a pool of prompts: each row mixes its own, and a class is scored by its prototype and its words.

MetaPrompter (Jiang et al. 2023): the query of a row is the frozen model's feature at its answer without any prompt;
attention over the keys weighs the values (eq. 2 and 3); the probability of a class is a share of the prototype's plus
the rest of the label words' (eq. 5). Unlike the published code, rows are read once through the embedding layer, the
temperature is the same everywhere, and query rows do not see each other unless `transductive` is asked for.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch.nn.functional import nll_loss

from foreword.core.shapes import Float, Tensor
from foreword.core.values import PromptPool
from foreword.inference.prompt_pool import bank_of, features, frozen_features, mixed, near, without_slots
from foreword.methods.meta.inner_loop import Leaves, Loss
from foreword.methods.meta.meta_step import Lens
from foreword.methods.meta.prototypes import by_task
from foreword.methods.meta.task_losses import EpisodeRow
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded
from foreword.models.score import score

MOST_KEPT = 100_000  # rows whose features are kept


@final
class PoolLens(Lens):
    """Read rows with prompts mixed from a task's pool. `share` is the prototypes' part of a probability."""

    def __init__(
        self, lm: FrozenLM, twice: FrozenLM, share: float = 0.5, sharpness: float = 10.0, transductive: bool = False
    ):
        self._models, self._share, self._sharpness = (lm, twice), share, sharpness
        self._transductive = transductive
        self._kept: OrderedDict[int, tuple[Encoded, Tensor]] = OrderedDict()

    def loss(self, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], tasks: int, budget: int) -> Loss:
        return _PoolLoss(self, support, query or support, tasks, budget)

    def scores(
        self, leaves: Leaves, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], budget: int
    ) -> list[Tensor]:
        results: list[Tensor] = [torch.zeros(0)] * len(query)
        with torch.no_grad():
            loss = _PoolLoss(self, support, query, len(leaves["keys"]), budget)
            for number, places in enumerate(by_task(query, len(leaves["keys"]))):
                logprob_QC = loss.log_probabilities(number, leaves, False)
                for place, logprob_C in zip(places, logprob_QC.cpu(), strict=True):
                    results[place] = logprob_C
        return results

    def queries(self, rows: Sequence[Encoded], budget: int) -> Float[Tensor, "B D"]:
        """Return the frozen features that choose each row's prompt, computed once a row."""
        missing = list({id(e.ids_S): e for e in rows if id(e.ids_S) not in self._kept}.values())
        if missing:
            made = frozen_features(self._models[0], [without_slots(e) for e in missing], budget)
            for encoded, feature_D in zip(missing, made, strict=True):
                self._kept[id(encoded.ids_S)] = (encoded, feature_D)
        found = torch.stack([self._kept[id(e.ids_S)][1] for e in rows])
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return found

    def combined(
        self, twice: bool, pool: PromptPool, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], budget: int
    ) -> Float[Tensor, "Q C"]:
        """Return log-probabilities of one task's query rows; if `query` is `support`, its rows are read once."""
        lm = self._models[twice]
        same = support is query
        rows = [r.encoded for r in (query if same else [*support, *query])]
        prompt_BPD = mixed(pool, self.queries(rows, budget))
        bank, own_B = bank_of(prompt_BPD), torch.arange(len(rows), device=lm.device)
        asked = slice(0 if same else len(support), None)
        parts = []
        plan = query[0].encoded.plan
        assert plan is not None, "the rows of an episode have labels"
        if self._share > 0:
            feature_BD = features(lm, rows, bank, own_B)
            label_S = torch.tensor([r.label for r in support], device=lm.device)
            near_QC = near(
                feature_BD[: len(support)], label_S, feature_BD[asked], plan.labels,
                sharpness=self._sharpness, transductive=self._transductive,
            )  # fmt: skip
            parts.append((self._share, near_QC.log_softmax(-1)))
        if self._share < 1:
            word_QC = score(lm, rows[asked], bank, own_B[asked])
            parts.append((1 - self._share, word_QC.log_softmax(-1)))
        return torch.stack([logprob + torch.tensor(part).log() for part, logprob in parts]).logsumexp(0)


@final
class _PoolLoss(Loss):
    """Compute the loss of one task in a pass, since prototypes tie its rows together."""

    def __init__(
        self, lens: PoolLens, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], tasks: int, budget: int
    ):
        self.tasks, self._lens, self._budget = tasks, lens, budget
        self._support = [[support[i] for i in places] for places in by_task(support, tasks)]
        same = support is query
        self._query = self._support if same else [[query[i] for i in places] for places in by_task(query, tasks)]

    @property
    def parts(self) -> int:
        return self.tasks

    def log_probabilities(self, number: int, leaves: Mapping[str, Tensor], twice: bool) -> Float[Tensor, "Q C"]:
        pool = PromptPool(leaves["keys"][number], leaves["values"][number])
        return self._lens.combined(twice, pool, self._support[number], self._query[number], self._budget)

    def part(self, number: int, leaves: Mapping[str, Tensor], twice: bool) -> Float[Tensor, "T"]:
        logprob_QC = self.log_probabilities(number, leaves, twice)
        label_Q = torch.tensor([r.label for r in self._query[number]], device=logprob_QC.device)
        loss = nll_loss(logprob_QC, label_Q)
        return torch.zeros(self.tasks, dtype=loss.dtype, device=loss.device).index_add(
            0, torch.tensor([number], device=loss.device), loss[None]
        )
