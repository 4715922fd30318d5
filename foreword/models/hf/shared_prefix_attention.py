"""Compute attention of cached rows after prefixes that they share: all queries of a prefix meet its keys in one
product."""

import torch

from foreword.core.kv_cache import CachedRows
from foreword.core.shapes import Float, Int, Tensor


def after_trunks(
    query: Float[Tensor, "B heads S K"],
    key: Float[Tensor, "B H X K"],
    value: Float[Tensor, "B H X K"],
    mask: Float[Tensor, "B 1 S C"],
    cached: CachedRows,
    layer: int,
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "B S heads K"]:
    """Return what plain attention gives over each row's shared prefix and then its own columns; C is the longest prefix
    + X.

    A prefix of 400 columns under 64 rows is read once a layer and not 64 times; such a step waits for these reads.
    """
    rows, heads, length, _ = query.shape
    kv_heads = key.shape[1]
    query = query * scaling
    ahead = mask.shape[3] - key.shape[2]
    scores = query.new_zeros(rows, heads, length, ahead)
    for trunk, some_G in cached.trunks:
        some_G = some_G.to(query.device)
        folded = _by_head(query.index_select(0, some_G), kv_heads)
        result = folded @ trunk.keys_NHPK[layer].to(query).transpose(1, 2)
        scores[some_G, :, :, : trunk.length] = _by_row(result, some_G, heads, length)
    own = query.reshape(rows, kv_heads, heads // kv_heads * length, -1) @ key.transpose(2, 3)
    scores = torch.cat([scores, own.view(rows, heads, length, -1)], dim=-1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    half = scores.dtype in (torch.float16, torch.bfloat16)
    weights = (scores + mask).softmax(dim=-1, dtype=torch.float32 if half else None).to(query.dtype)
    ahead_weights, own_weights = weights[..., :ahead], weights[..., ahead:]
    out = own_weights.reshape(rows, kv_heads, -1, key.shape[2]) @ value
    out = out.view(rows, heads, length, -1)
    for trunk, some_G in cached.trunks:
        some_G = some_G.to(query.device)
        folded = _by_head(ahead_weights.index_select(0, some_G)[..., : trunk.length], kv_heads)
        result = folded @ trunk.values_NHPK[layer].to(query)
        out.index_add_(0, some_G, _by_row(result, some_G, heads, length))
    return out.transpose(1, 2).contiguous()


def _by_head(heads_GHSX: Tensor, kv_heads: int) -> Float[Tensor, "H Y X"]:
    """Reshape (G, heads, S, X) to (H, G * heads / H * S, X): all rows of a key-value head together."""
    groups = heads_GHSX.unflatten(1, (kv_heads, -1))
    return groups.transpose(0, 1).flatten(1, 3)


def _by_row(found_HYX: Tensor, some_G: Int[Tensor, "G"], heads: int, length: int) -> Float[Tensor, "G heads S X"]:
    kv_heads = found_HYX.shape[0]
    return found_HYX.unflatten(1, (len(some_G), heads // kv_heads, length)).transpose(0, 1).flatten(1, 2)
