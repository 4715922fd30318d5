"""Compute logits from the rows of the output head's matrix if the head is a plain one, else by calling the head.

An adapter at the head (LoRA, DoRA, trained tokens), or a parametrised or hooked head, gives other logits than its
`weight` says, so only the `weight` of an unchanged `nn.Linear` is read.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ModelError
from foreword.models.hf import families, storage


@final
class OutputHead:
    """Compute the logits of a model's last hidden states, after its transform; biases and soft caps are included."""

    def __init__(self, model: PreTrainedModel, device: torch.device):
        """Find the output head of a model; its logits come on `device`. Raises: ModelError if there is no head, or one
        that cannot be read."""
        self._model, self._device = model, device
        layer = model.get_output_embeddings()
        if layer is None:
            raise ModelError(
                f"{type(model).__name__} has no output head; load it as a masked or causal language model."
            )
        packed = (t for t in (*layer.parameters(), *layer.buffers()) if not t.is_floating_point() and t.ndim > 1)
        if next(packed, None) is not None:
            raise ModelError(
                f"The output head of {type(model).__name__} is a quantised {type(layer).__name__}, whose rows cannot "
                "be read one by one; quantise the model without its head, as its library does by default."
            )
        self._layer: nn.Module = layer
        self._plain = is_plain(layer)

    @property
    def size(self) -> int:
        """Return the number of tokens that the head has a logit for."""
        return len(families.output_of(self._model)[0]) if self._plain else int(self._model.config.vocab_size)

    def pieces(self, hidden_XD: Float[Tensor, "X D"], ids_U: Int[Tensor, "U"], numbers: int) -> Float[Tensor, "X U"]:
        """Return fp32 (fp64) logits of these tokens alone. No more than `numbers` logits of the whole vocabulary exist
        at once."""
        if not self._plain:
            return self._by_parts(hidden_XD, numbers, lambda part_XD: self.whole(part_XD)[:, ids_U.to(self._device)])
        weight_VD, bias_V = families.output_of(self._model)
        ids_U = ids_U.to(weight_VD.device)
        bias_U = None if bias_V is None else bias_V[ids_U.to(bias_V.device)].to(self._device)
        return self._product(hidden_XD, weight_VD[ids_U].to(self._device), bias_U)

    def whole(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X V"]:
        """Return fp32 (fp64) logits of the whole vocabulary, multiplied in the model's own dtype."""
        if self._plain:
            weight_VD, bias_V = families.output_of(self._model)
            bias_V = None if bias_V is None else bias_V.to(weight_VD.device)
            logits_XV = nn.functional.linear(hidden_XD.to(weight_VD.device, weight_VD.dtype), weight_VD, bias_V)
        else:
            logits_XV = self._layer(hidden_XD.to(storage.device_of(self._layer)))
            added = families.added_to(self._model)
            logits_XV = logits_XV if added is None else logits_XV + added.to(logits_XV)
        return self._capped(logits_XV.to(self._device, self._wide(logits_XV.dtype)))

    def normaliser(self, hidden_XD: Float[Tensor, "X D"], numbers: int) -> Float[Tensor, "X"]:
        """Return the log-sum-exp over the vocabulary, computed for as many rows at a time as have `numbers` logits."""
        if not self._plain:
            return self._by_parts(hidden_XD, numbers, lambda part_XD: self.whole(part_XD).logsumexp(-1))
        weight_VD, bias_V = families.output_of(self._model)
        weight_VD, bias_V = weight_VD.to(self._device), None if bias_V is None else bias_V.to(self._device)

        def normalise(part_XD: Tensor) -> Tensor:
            return self._product(part_XD, weight_VD, bias_V).logsumexp(-1)

        return self._by_parts(hidden_XD, numbers, normalise)

    def _by_parts(self, hidden_XD: Float[Tensor, "X D"], numbers: int, read: Callable[[Tensor], Tensor]) -> Tensor:
        step = max(1, numbers // self.size)
        if hidden_XD.shape[0] <= step:
            return read(hidden_XD)
        # Autograd would keep every chunk's logits until the backward pass, so they are computed again there.
        chunks = hidden_XD.split(step)
        trained = hidden_XD.requires_grad or any(p.requires_grad for p in self._layer.parameters())
        if torch.is_grad_enabled() and trained:
            return torch.cat([checkpoint(read, chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([read(chunk) for chunk in chunks])

    def _product(self, hidden_XD: Tensor, weight_UD: Tensor, bias_U: Tensor | None) -> Tensor:
        dtype = self._wide(self._model.dtype)
        bias_U = None if bias_U is None else bias_U.to(dtype)
        return self._capped(nn.functional.linear(hidden_XD.to(dtype), weight_UD.to(dtype), bias_U))

    def _capped(self, logits: Tensor) -> Tensor:
        return families.cap(logits, families.softcap_of(self._model))

    def _wide(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32)


def is_plain(layer: nn.Module) -> bool:
    """Return whether calling the layer is a product with its `weight` and nothing else: no adapter, hook,
    parametrisation or replaced method changes it. Accelerate's hooks are allowed, since they only bring the layer's
    tensors."""
    if type(layer) is not nn.Linear or not storage.is_plain(layer.weight):
        return False
    replaced = "forward" in vars(layer) and not storage.hooks_of(layer)
    return not (replaced or layer._forward_hooks or layer._forward_pre_hooks)
