"""Pack padded rows into one row of their real tokens: all that a layer does outside of attention is done for those
alone."""

from dataclasses import dataclass
from typing import Any, cast

import torch

from foreword.core.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """Hold where the X real tokens of B rows of S columns stand: `place_X` counts the B * S places row by row.

    `token_BS` names the token of a place (at padding it must not be used), `pad_Z` the places of padding.
    """

    token_BS: Int[Tensor, "B S"]
    place_X: Int[Tensor, "X"]
    pad_Z: Int[Tensor, "Z"]

    @staticmethod
    def of(attend_BS: Bool[Tensor, "B S"]) -> "Packing":
        real = attend_BS.flatten()
        token_BS = (real.cumsum(0) - 1).clamp(min=0).view(attend_BS.shape)
        return Packing(token_BS, real.nonzero()[:, 0], (~real).nonzero()[:, 0])

    def on(self, device: torch.device) -> "Packing":
        """Return the same on another device, since the layers of one model may stand on several."""
        if self.place_X.device == device:
            return self
        return Packing(self.token_BS.to(device), self.place_X.to(device), self.pad_Z.to(device))

    def pack(self, padded_BSE: Float[Tensor, "B S *E"]) -> Float[Tensor, "X *E"]:
        """Return the real tokens, in order of rows; differentiable twice."""
        flat = padded_BSE.flatten(0, 1)
        return flat if not len(self.pad_Z) else cast(Tensor, _Pack.apply(flat, self))

    def spread(self, packed_XE: Float[Tensor, "X *E"]) -> Float[Tensor, "B S *E"]:
        """Return each token in its place, and zeros at padding; differentiable twice."""
        spread = packed_XE if not len(self.pad_Z) else cast(Tensor, _Spread.apply(packed_XE, self))
        return spread.unflatten(0, self.token_BS.shape)


class _Pack(torch.autograd.Function):
    """Differentiate `pack`: it and `spread` are each other's transpose, so each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return padded.index_select(0, packing.place_X)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Spread.apply(gradients[0], ctx.packing), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return packed.index_select(0, packing.token_BS.flatten()).index_fill_(0, packing.pad_Z, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Pack.apply(gradients[0], ctx.packing), None
