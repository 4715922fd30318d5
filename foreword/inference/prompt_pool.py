"""Mix the prompts of a pool by a row's features."""

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize, one_hot

from foreword.core.prompts import Bank
from foreword.core.shapes import Float, Int, Tensor
from foreword.core.values import PromptPool
from foreword.inference.batched import map_rows
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.score import score


def without_slots(encoded: Encoded) -> Encoded:
    """Return the row as the frozen model reads it without a prompt."""
    text_S = encoded.slot_S < 0
    gone = int((~text_S[: encoded.answer]).sum())
    return Encoded(encoded.ids_S[text_S], encoded.slot_S[text_S], encoded.answer - gone, encoded.plan, encoded.cut)


def mixed(pool: PromptPool, feature_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B P D"]:
    """Return each row's prompt: the pool's values, weighted by a softmax over the keys' products with its feature."""
    weight_BK = (feature_BD @ pool.keys_KD.T.to(feature_BD.dtype) / pool.keys_KD.shape[1] ** 0.5).softmax(-1)
    return torch.einsum("bk,kpd->bpd", weight_BK, pool.values_KPD.to(weight_BK.dtype))


def bank_of(prompt_BPD: Float[Tensor, "B P D"]) -> Bank:
    none_B = torch.zeros(len(prompt_BPD), dtype=torch.long, device=prompt_BPD.device)
    return Bank(prompt_BPD, None, None, none_B, none_B)


@torch.no_grad()
def pool_scores(lm: FrozenLM, pool: PromptPool, encoded: Sequence[Encoded], budget: int) -> Float[Tensor, "N C"]:
    """Score rows by their label words, each with its prompt mixed from the pool; -inf for labels a row lacks."""
    pool = PromptPool(pool.keys_KD.to(lm.device), pool.values_KPD.to(lm.device))
    most = max((e.plan.labels for e in encoded if e.plan), default=0)

    def read(batch: list[int]) -> Tensor:
        rows = [encoded[i] for i in batch]
        bank = bank_of(mixed(pool, frozen_features(lm, [without_slots(e) for e in rows], budget)))
        part_BC = score(lm, rows, bank, torch.arange(len(rows), device=lm.device)).float().cpu()
        return torch.nn.functional.pad(part_BC, (0, most - part_BC.shape[1]), value=-torch.inf)

    return torch.stack(map_rows(encoded, budget, read)) if encoded else torch.zeros(0, most)


SHARPNESS = 10.0  # cosines times this are the scores


def features(
    lm: FrozenLM, rows: Sequence[Encoded], bank: Bank | None, task_B: Int[Tensor, "B"]
) -> Float[Tensor, "B D"]:
    """Return the hidden state at each row's answer, after the output head's transform; differentiable in the bank."""
    inputs, prefix = prepare(lm, collate(rows), bank, task_B)
    hidden_BRD = lm.hidden_at(inputs, prefix)
    return hidden_BRD[:, 0].to(torch.promote_types(hidden_BRD.dtype, torch.float32))


def near(
    support_SD: Float[Tensor, "S D"],
    label_S: Int[Tensor, "S"],
    query_QD: Float[Tensor, "Q D"],
    classes: int,
    *,
    sharpness: float = SHARPNESS,
    transductive: bool = False,
) -> Float[Tensor, "Q C"]:
    """Score query rows by the cosine to each class's mean of support features, times `sharpness`.

    `transductive` first subtracts the mean of the query rows from all features, as the paper's code does: then a row's
    score depends on the other query rows, and on how many there are of each class.
    """
    if transductive:
        middle_D = query_QD.mean(0)
        support_SD, query_QD = support_SD - middle_D, query_QD - middle_D
    member_SC = one_hot(label_S, classes).to(support_SD.dtype)
    mean_CD = (member_SC.T @ support_SD) / member_SC.sum(0)[:, None]
    return sharpness * normalize(query_QD, dim=-1) @ normalize(mean_CD, dim=-1).T


@torch.no_grad()
def frozen_features(lm: FrozenLM, rows: Sequence[Encoded], budget: int) -> Float[Tensor, "B D"]:
    """Return the features of rows without any prompt; rows are read in batches."""

    def read(batch: list[int]) -> Tensor:
        return features(lm, [rows[i] for i in batch], None, torch.zeros(len(batch), dtype=torch.long))

    return torch.stack(map_rows(rows, budget, read))
