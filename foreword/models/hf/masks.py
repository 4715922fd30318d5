"""Build masks: which columns each position of a row may see, among its own, a cache's and those of the prefix before
it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import sdpa_mask

from foreword.core.inject import PrefixBatch
from foreword.core.kv_cache import CachedRows
from foreword.core.shapes import Bool, Int, Tensor
from foreword.models.hf.unpadded import Packing


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Hold the rows that the model reads as one row of packed tokens (as they are if `packing` is None), and which text
    columns each of their positions may see, before any layer's causality and window.

    In cross-attention the rows are the columns of the encoder, which are read, not the rows that read them. `attend_BS`
    is None if nothing is padded. `position_BS` counts real tokens, the prefix's start included. `read_BR` names the
    only columns of each row that the last layer must compute, and `read_Y` their packed tokens, row by row; if the
    layer computes those alone, it appends to `pruned`.
    """

    packing: Packing | None
    attend_BS: Bool[Tensor, "B S"] | None
    position_BS: Int[Tensor, "B S"]
    tree_BSS: Bool[Tensor, "B S S"] | None
    longest: int  # no position, start included, reaches this number: a window at least as long masks nothing
    read_BR: Int[Tensor, "B R"] | None = None
    read_Y: Int[Tensor, "Y"] | None = None
    pruned: list[bool] = field(default_factory=list)

    @property
    def packed(self) -> Packing:
        assert self.packing is not None, "the rows are packed"
        return self.packing


def visible(rows: PackedRows, prefix: PrefixBatch | None, causal: bool, window: int | None) -> Tensor | None:
    """Return what each position sees, broadcastable to (B, 1, S, P+S); None if plain (causal) attention gives the
    same."""
    text = _visible_text(rows, causal, window)
    ahead = None if prefix is None else _visible_prefix(rows, prefix, causal, window)
    if prefix is None or (ahead is None and text is None and not causal):
        return text
    length, columns = rows.position_BS.shape[1], prefix.real_BP.shape[1]
    device = rows.position_BS.device
    yes = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    if text is None:
        text = below(length, device)[None, None] if causal else yes
    ahead = yes if ahead is None else ahead
    shape = torch.broadcast_shapes(text.shape[:3], ahead.shape[:3])
    return torch.cat([ahead.expand(*shape, columns), text.expand(*shape, length)], dim=-1)


def _visible_text(rows: PackedRows, causal: bool, window: int | None) -> Tensor | None:
    parts = []
    length, device = rows.position_BS.shape[1], rows.position_BS.device
    if rows.attend_BS is not None:
        parts.append(rows.attend_BS[:, None, None, :])
    if rows.tree_BSS is not None:
        parts.append(rows.tree_BSS[:, None])
    if window is not None:
        apart_BSS = rows.position_BS[:, :, None] - rows.position_BS[:, None, :]
        parts.append((apart_BSS.abs() < window)[:, None])
    if not parts:
        return None
    if causal:
        parts.append(below(length, device)[None, None])
    seen = parts[0]
    for part in parts[1:]:
        seen = seen & part
    return seen


def _visible_prefix(rows: PackedRows, prefix: PrefixBatch, causal: bool, window: int | None) -> Tensor | None:
    if prefix.whole and window is None:
        return None
    seen = prefix.real_BP[:, None, None, :]
    if window is None:
        return seen
    column_P = torch.arange(prefix.real_BP.shape[1], device=prefix.real_BP.device)
    apart_BSP = rows.position_BS[:, :, None] - column_P
    return seen & ((apart_BSP if causal else apart_BSP.abs()) < window)[:, None]


def visible_cached(rows: PackedRows, cached: CachedRows, window: int | None) -> Bool[Tensor, "B 1 S X"]:
    """Return which columns of a cache each position sees. Columns are positions: each row's own up to where it stands,
    or the last window of them; those of the prefixes that rows share come first."""
    device = rows.position_BS.device
    ahead_B1 = cached.ahead_B.to(device)[:, None]
    at_BX = torch.arange(cached.columns, device=device) + ahead_B1
    if cached.trunks:
        column_P = torch.arange(int(cached.ahead_B.max()), device=device)
        never = torch.iinfo(at_BX.dtype).max // 2  # no position reaches it
        at_BX = torch.cat([torch.where(column_P < ahead_B1, column_P, never), at_BX], dim=1)
    apart_BSX = rows.position_BS[:, :, None] - at_BX[:, None, :]
    seen_BSX = apart_BSX >= 0
    return (seen_BSX if window is None else seen_BSX & (apart_BSX < window))[:, None]


def library_mask(
    mask: Tensor | None, prefix: PrefixBatch | None, window: int | None, dtype: torch.dtype
) -> Tensor | None:
    """Return the library's boolean mask with the prefix's columns in front, as an additive mask, for generation with a
    cache.

    A query's position is read from its row: it sees every earlier real token, or a whole window of them, in which case
    no prefix column is near enough (the text starts after the prefix).
    """
    if prefix is None:
        return None if mask is None else additive(mask, dtype)
    assert mask is not None, "boolean_mask is never skipped"
    rows, length = mask.shape[0], mask.shape[2]
    ahead = prefix.real_BP[:, None, None, :].expand(rows, 1, length, -1)
    if window is not None:
        column_P = torch.arange(prefix.real_BP.shape[1], device=mask.device)
        position_B1S = prefix.start_B[:, None, None] + mask.sum(-1) - 1
        ahead = ahead & (position_B1S[..., None] - column_P < window)
    return additive(torch.cat([ahead, mask], dim=-1), dtype)


def boolean_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Return the library's boolean mask, which is never skipped, since prefix columns must be joined to it."""
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    mask = sdpa_mask(*args, **kwargs)
    assert mask is not None
    return mask


def additive(seen: Bool[Tensor, "..."], dtype: torch.dtype) -> Tensor:
    """Return 0 where a column is seen, and half the lowest number of the dtype elsewhere.

    Its sum with a score stays finite, so a padded position that sees nothing gets some average and not NaN.
    """
    lowest = torch.tensor(torch.finfo(dtype).min / 2, dtype=dtype, device=seen.device)
    return torch.where(seen, lowest.new_zeros(()), lowest)


def below(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
