"""Compute T5's relative bias between any two positions, from the table of a stack's first layer, which all its layers
share."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from foreword.core.shapes import Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """Hold `attention`, the module of the first layer, which owns the table; distances fall into the buckets of that
    module."""

    attention: nn.Module

    def between(self, query_BS: Int[Tensor, "_ S"], key_BX: Int[Tensor, "_ X"]) -> Float[Tensor, "_ heads S X"]:
        """Return the bias of every head for queries and keys at these positions; one row stands for all rows."""
        own: Any = self.attention
        apart_BSX = key_BX[:, None, :] - query_BS[:, :, None]
        bucket_BSX = own._relative_position_bucket(
            apart_BSX.to(own.relative_attention_bias.weight.device),
            bidirectional=not own.is_decoder,
            num_buckets=own.relative_attention_num_buckets,
            max_distance=own.relative_attention_max_distance,
        )
        return own.relative_attention_bias(bucket_BSX).permute(0, 3, 1, 2)
