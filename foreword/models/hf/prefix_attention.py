"""Put each row's prefix before a layer's keys: the seam is one attention function, registered with transformers.

A forward pass hands its `Seam` to the model as a keyword; transformers carries it untouched to every attention layer.
Nothing is patched, no cache object is made, and nothing is left behind after an exception.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from foreword.core.inject import PrefixBatch
from foreword.core.kv_cache import CachedRows
from foreword.core.shapes import Float, Int, Tensor
from foreword.models.hf.masks import PackedRows, additive, below, boolean_mask, library_mask, visible, visible_cached
from foreword.models.hf.relative_bias import RelativeBias
from foreword.models.hf.shared_prefix_attention import after_trunks
from foreword.models.hf.unpadded import Packing

NAME = "foreword"
Backend = Literal["eager", "sdpa"]


class Enough(Exception):  # noqa: N818 - not an error
    """End a pass once as many calls as were wanted are noted."""


@dataclass(frozen=True, eq=False)
class Seam:
    """Hold what every attention layer needs to know in one forward pass.

    `layer_of` maps the id of an attention module to its layer. `rows` is None while generating: the library's own mask
    then decides about the text columns, since only it knows what the cache holds. `seen` (if given) records each call,
    and the pass ends with `Enough` after `enough` calls. `weights` gets each layer's attention weights, of rows without
    a prefix. `given` holds the keys and values of all tokens, if the model's own are only those of the tokens read.
    `cached` rows stand in a cache instead, with everything before them, prefix included. `bias` is T5's, added to the
    scores of every head over prefix and text columns; `relative` computes it for columns whose bias the library does
    not know. `cross` is the seam of the modules of a decoder that attend to its encoder, and `opening` what the decoder
    begins to generate with.
    """

    layer_of: Mapping[int, int]
    prefix: PrefixBatch | None = None
    cached: CachedRows | None = None
    rows: PackedRows | None = None
    backend: Backend | None = None
    seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None
    enough: int | None = None
    weights: list[Tensor] | None = None
    given: tuple[Tensor, Tensor] | None = None
    bias: Float[Tensor, "_ heads S X"] | None = None
    relative: RelativeBias | None = None
    cross: "Seam | None" = None
    opening: "Opening | None" = None
    masks: dict[tuple[bool, int | None, torch.dtype, bool], Tensor | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Opening:
    """Hold the embeddings with which a decoder begins to generate, padded on the left, and how much later than its
    column each row's text stands: after a prefix, less the padding."""

    embed_BSD: Float[Tensor, "B S D"]
    later_B: Int[Tensor, "B"]


def pick_backend(query: Tensor, columns: int, wanted: Backend | None, softcap: float | None) -> Backend:
    """Choose the backend, in this place only; eager alone can be differentiated twice and supports soft caps.

    On a CPU the two are level up to about 64 columns; the fused kernel gains 3% of a step at 80 and a tenth at 256.
    """
    if softcap is not None or wanted == "eager":
        return "eager"
    return "sdpa" if wanted == "sdpa" or query.is_cuda or columns > 64 else "eager"


def attend(
    module: nn.Module,
    query: Float[Tensor, "B _ S K"],
    key: Float[Tensor, "B H _ K"],
    value: Float[Tensor, "B H _ K"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    seam: Seam | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers calls it; return (B, S, heads, K), as its own functions do, and None.

    If the seam has packed rows, their tokens come packed: (1, heads, X, K) goes in and (1, X, heads, K) comes out.
    """
    causal = bool(module.is_causal) if is_causal is None else is_causal
    seam = Seam({}) if seam is None else seam
    if seam.cross is not None and id(module) in seam.cross.layer_of:
        seam = seam.cross
    if seam.seen is not None:
        seam.seen.append((module, key, value))
        if len(seam.seen) == seam.enough:
            raise Enough
    if seam.given is not None:
        key, value = seam.given
    rows = seam.rows
    packing = None if rows is None or rows.packing is None else rows.packing.on(key.device)
    if rows is not None and packing is not None:
        key, value = _spread(key, packing), _spread(value, packing)
        query = _spread(query, packing) if seam.given is None else _by_row(query, rows.position_BS.shape[0])
    if seam.cached is not None:
        key, value = seam.cached.joined(seam.layer_of[id(module)], key, value)
    if seam.prefix is not None:
        layer = seam.layer_of[id(module)]
        # The layers of one model may stand on several devices.
        ahead_key, ahead_value = seam.prefix.of_layer(layer)
        key = torch.cat([ahead_key.to(key.device), key], dim=2)
        value = torch.cat([ahead_value.to(value.device), value], dim=2)
    fused = seam.weights is None and pick_backend(query, key.shape[2], seam.backend, softcap) == "sdpa"
    if rows is None:
        mask = library_mask(attention_mask, seam.prefix, sliding_window, query.dtype)
        bias = position_bias if seam.prefix is None else library_bias(position_bias, attention_mask, seam)
    else:
        bias = seam.bias
        triangular = fused and seam.given is None and bias is None
        mask = layer_mask(seam, rows, causal, sliding_window, query.dtype, triangular)
    mask = None if mask is None else mask.to(query.device)
    if bias is not None:
        mask = bias.to(query) if mask is None else mask + bias.to(query)
    if mask is not None and rows is not None and seam.given is not None:
        mask = _of_read(mask, rows)
    scale: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    if seam.cached is not None and seam.cached.trunks:
        assert mask is not None, "rows of a cache always have a mask"
        out = after_trunks(query, key, value, mask, seam.cached, seam.layer_of[id(module)], scale, softcap)
    elif fused:
        groups = query.shape[1] // key.shape[1]
        key, value = _repeat(key, groups), _repeat(value, groups)
        triangle = rows is not None and mask is None and causal
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale, is_causal=triangle)
        out = out.transpose(1, 2).contiguous()
    else:
        out = eager(query, key, value, mask, scale, dropout, softcap, seam.weights)
    if packing is not None:
        out = (packing.pack(out) if seam.given is None else out.flatten(0, 1))[None]
    return out, None


def _spread(heads_1HXK: Tensor, packing: Packing) -> Tensor:
    """Spread (1, H, X, K) of packed tokens to (B, H, S, K)."""
    return packing.spread(heads_1HXK[0].transpose(0, 1)).transpose(1, 2)


def _by_row(heads_1HYK: Tensor, rows: int) -> Tensor:
    """Reshape (1, H, B * R, K) to (B, H, R, K)."""
    return heads_1HYK[0].transpose(0, 1).unflatten(0, (rows, -1)).transpose(1, 2)


def _of_read(mask: Tensor, rows: PackedRows) -> Tensor:
    """Return a mask over the columns of every position, at the positions read alone."""
    if mask.shape[2] == 1 or rows.read_BR is None:
        return mask
    batch, reads = rows.read_BR.shape
    at = rows.read_BR.to(mask.device)[:, None, :, None].expand(batch, mask.shape[1], reads, mask.shape[3])
    return mask.expand(batch, -1, -1, -1).gather(2, at)


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    noted: list[Tensor] | None = None,
) -> Tensor:
    """Compute attention by plain matrix products; grouped heads are folded into the query axis, so keys are never
    repeated. Weights are appended to `noted` if it is given."""
    rows, heads, length, size = query.shape
    kv_heads = key.shape[1]
    folded = (query * scaling).reshape(rows, kv_heads, heads // kv_heads * length, size)
    scores = (folded @ key.transpose(2, 3)).view(rows, heads, length, key.shape[2])
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    half = scores.dtype in (torch.float16, torch.bfloat16)
    weights = scores.softmax(dim=-1, dtype=torch.float32 if half else None).to(query.dtype)
    if noted is not None:
        noted.append(weights.detach())
    if dropout:
        weights = F.dropout(weights, p=dropout)
    out = weights.view(rows, kv_heads, -1, key.shape[2]) @ value
    return out.view(rows, heads, length, value.shape[-1]).transpose(1, 2).contiguous()


def layer_mask(
    seam: Seam, rows: PackedRows, causal: bool, window: int | None, dtype: torch.dtype, fused: bool
) -> Tensor | None:
    """Return the additive mask over prefix and text columns for layers of this kind; built once a pass for each kind.

    None if nothing is hidden or, for the fused kernel, if its own causal triangle hides the same columns.
    """
    if window is not None and window >= rows.longest:
        window = None
    at = (causal, window, dtype, fused)
    if at not in seam.masks:
        if seam.cached is not None:
            seen = visible_cached(rows, seam.cached, window)
        else:
            seen = visible(rows, seam.prefix, causal, window)
        if seen is None and causal and not fused:
            seen = below(rows.position_BS.shape[1], rows.position_BS.device)[None, None]
        seam.masks[at] = None if seen is None else additive(seen, dtype)
    return seam.masks[at]


def library_bias(bias: Tensor | None, mask: Tensor | None, seam: Seam) -> Tensor | None:
    """Return the library's own bias with that of the prefix's columns in front, for generation with a cache; the
    columns of the prefix have 0 if the model has no bias by distance (cross-attention)."""
    prefix = seam.prefix
    if bias is None or prefix is None:
        return bias
    rows, columns = prefix.real_BP.shape
    if seam.relative is None:
        ahead = bias.new_zeros(rows, bias.shape[1], bias.shape[2], columns)
    else:
        assert mask is not None, "boolean_mask is never skipped"
        position_BS = prefix.start_B[:, None].to(mask.device) + mask[:, 0].sum(-1) - 1
        ahead = seam.relative.between(position_BS, torch.arange(columns, device=mask.device)[None])
    return torch.cat([ahead.to(bias), bias.expand(rows, -1, -1, -1)], dim=-1)


def _repeat(heads_BHSK: Tensor, groups: int) -> Tensor:
    return heads_BHSK if groups == 1 else heads_BHSK.repeat_interleave(groups, dim=1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, boolean_mask)
