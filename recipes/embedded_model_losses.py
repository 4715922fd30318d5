"""Losses of the embedded model: the cross-entropy that trains it, and what its weights are worth on other text."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from embedded_model_text import BEGINS, CLS, PAD, SEP, Batch, causal_batch, masked_batch
from torch import nn
from transformers import BertForMaskedLM

from foreword.core.shapes import Float, Tensor

# Positions whose logits exist at once, without and with a GPU: 31 MB fits a large cache, a GPU wants 1 GB.
CHUNK = {False: 512, True: 16384}
EDGES = (1, 48, 96, 128, 256, 512)  # of positions whose losses are told apart


def hidden_at(model: BertForMaskedLM, batch: Batch) -> Float[Tensor, "N D"]:
    """What the output matrix is multiplied with, at the batch's places only."""
    ids_BS = moved(batch.ids_BS, model.device)
    S = ids_BS.shape[1]
    seen = torch.ones(1, 1, S if batch.causal else 1, S, dtype=torch.bool, device=model.device)
    if batch.causal:
        seen = seen.tril()
    if padded := bool((batch.ids_BS == PAD).any()):
        seen = seen & (ids_BS[:, None, None, :] != PAD)
    mask = None
    if batch.causal or padded:
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device).masked_fill_(
            ~seen, torch.finfo(model.dtype).min
        )
    hidden_BSD = model.bert(ids_BS, attention_mask=mask).last_hidden_state
    return model.cls.predictions.transform(hidden_BSD.flatten(0, 1)[moved(batch.place_N, model.device)])


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what a GPU has still to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@torch.no_grad()
def backward_of_output(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, target_N: Tensor, grad_VD: Tensor, grad_V: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the vocabulary, summed, and the gradient of it over `count` at the hidden states.

    That of the output layer is added to `grad_VD` and `grad_V`. Logits are made once, and exist for a chunk only.
    """
    loss, grad_ND = torch.zeros((), device=hidden_ND.device), torch.empty_like(hidden_ND)
    chunk = CHUNK[hidden_ND.is_cuda]
    for at in range(0, len(hidden_ND), chunk):
        part_XD, target_X1 = hidden_ND[at : at + chunk], target_N[at : at + chunk, None]
        ones_X1 = torch.ones_like(target_X1, dtype=hidden_ND.dtype)
        grad_XV = torch.addmm(bias_V, part_XD, weight_VD.T).softmax(1)
        loss -= grad_XV.gather(1, target_X1).float().clamp(min=1e-30).log().sum()
        grad_XV.scatter_add_(1, target_X1, -ones_X1)
        grad_ND[at : at + chunk] = grad_XV @ weight_VD
        grad_VD.add_(grad_XV.T @ part_XD, alpha=1 / count)
        grad_V.add_((ones_X1.T @ grad_XV)[0], alpha=1 / count)
    return loss, grad_ND / count


@torch.no_grad()
def losses(model: BertForMaskedLM, batch: Batch) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """The loss at each place, and whether the likeliest piece is the right one."""
    parts, hidden_ND = [], hidden_at(model, batch)
    chunk, target_N = CHUNK[hidden_ND.is_cuda], moved(batch.target_N, model.device)
    for hidden_XD, target_X in zip(hidden_ND.split(chunk), target_N.split(chunk), strict=True):
        logits_XV = model.cls.predictions.decoder(hidden_XD).float()
        loss_X = nn.functional.cross_entropy(logits_XV, target_X, reduction="none")
        parts.append(torch.stack([loss_X, (logits_XV.argmax(1) == target_X).float()]).cpu())
    loss_N, right_N = torch.cat(parts, 1)
    return loss_N, right_N


def measure(model: BertForMaskedLM, stream: np.ndarray, rows: int) -> dict[str, Any]:
    """Loss and accuracy of both objectives in rows of 96 pieces and of the whole context, and loss by position.

    Rows begin at equal distances in the text, wherever that is; as many pieces are read at either length.
    """
    context = model.config.max_position_embeddings
    found: dict[str, Any] = {"rows": rows}
    for length in sorted({min(96, context), context}):
        many = rows * context // length
        begins = np.arange(many) * ((len(stream) - context) // many)
        text_BS = np.stack([stream[at : at + length] for at in begins]).astype(np.int64) & ~BEGINS
        text_BS[:, 0] = CLS
        for kind in ("masked", "causal"):
            parts, rng = [], np.random.default_rng(0)
            for ids_BS in np.array_split(text_BS, math.ceil(many * length / 4096)):
                ended_BS = np.concatenate([ids_BS[:, :-1], np.full((len(ids_BS), 1), SEP)], 1)
                batch = causal_batch(ids_BS) if kind == "causal" else masked_batch(ended_BS, rng)
                parts.append(torch.stack([batch.place_N % length + 1, *losses(model, batch)]))
            place_N, loss_N, right_N = torch.cat(parts, 1)
            told = {"loss": float(loss_N.mean()), "accuracy": float(right_N.mean()), "predictions": len(loss_N)}
            if kind == "causal":
                told["perplexity"] = math.exp(told["loss"])
                told["loss_by_position"] = {
                    f"{low}-{high - 1}": float(loss_N[(place_N >= low) & (place_N < high)].mean())
                    for low, high in pairwise(EDGES)
                    if low < length
                }
            found[f"{kind}, {length} pieces"] = told
    return found
