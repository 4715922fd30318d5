"""Mix the prompts of a pool by a row's features"""

from collections.abc import Sequence

import torch

from foreword.core.prompts import Bank
from foreword.core.shapes import Float, Tensor
from foreword.core.values import PromptPool
from foreword.inference.batched import batches_of
from foreword.methods.meta.prototypes import frozen_features
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded
from foreword.models.score import score


def without_slots(encoded: Encoded) -> Encoded:
    """The row as the frozen model reads it without a prompt."""
    text_S = encoded.slot_S < 0
    gone = int((~text_S[: encoded.answer]).sum())
    return Encoded(encoded.ids_S[text_S], encoded.slot_S[text_S], encoded.answer - gone, encoded.plan, encoded.cut)


def mixed(pool: PromptPool, feature_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B P D"]:
    """The prompt of each row: the values weighed by a softmax over the keys' products with its feature."""
    weight_BK = (feature_BD @ pool.keys_KD.T.to(feature_BD.dtype) / pool.keys_KD.shape[1] ** 0.5).softmax(-1)
    return torch.einsum("bk,kpd->bpd", weight_BK, pool.values_KPD.to(weight_BK.dtype))


def bank_of(prompt_BPD: Float[Tensor, "B P D"]) -> Bank:
    none_B = torch.zeros(len(prompt_BPD), dtype=torch.long, device=prompt_BPD.device)
    return Bank(prompt_BPD, None, None, none_B, none_B)


@torch.no_grad()
def pool_scores(lm: FrozenLM, pool: PromptPool, encoded: Sequence[Encoded], budget: int) -> Float[Tensor, "N C"]:
    """Scores of rows by their label words, each with its prompt mixed from the pool; -inf for labels it lacks."""
    pool = PromptPool(pool.keys_KD.to(lm.device), pool.values_KPD.to(lm.device))
    most = max((e.plan.labels for e in encoded if e.plan), default=0)
    whole = torch.full((len(encoded), most), -torch.inf)
    for batch in batches_of(encoded, budget):
        rows = [encoded[i] for i in batch]
        bank = bank_of(mixed(pool, frozen_features(lm, [without_slots(e) for e in rows], budget)))
        part_BC = score(lm, rows, bank, torch.arange(len(rows), device=lm.device)).cpu()
        whole[batch, : part_BC.shape[1]] = part_BC.to(whole.dtype)
    return whole
