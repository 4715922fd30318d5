"""Make views of a model: modules and config are copied, tensors are shared. What is set on a view never reaches the
model."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword.core.shapes import Tensor
from foreword.errors import ModelError
from foreword.models.hf import prefix_attention, storage

MOVERS = ("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "neuron")  # accelerate sets them on a model it splits


def view_of(model: PreTrainedModel, weights: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
    """Return a copy of the module tree over the same storage, with some weights (by name) replaced.

    Tied weights stay tied, since they are replaced by identity. With `weights=None` the model is the caller's: the view
    is frozen and in eval mode whatever the model is. Accelerate's hooks are copied, so that they bring offloaded
    tensors to the view's modules; the offloaded tensors are shared.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if weights and name in weights:
            memo[id(parameter)] = weights[name]
        elif weights is None and type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        else:
            memo[id(parameter)] = parameter
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    for module in model.modules():
        for hook in storage.hooks_of(module):
            waiting = getattr(hook, "weights_map", None)
            memo[id(waiting)] = waiting
    copied = copy.deepcopy(model, memo)
    for mover in MOVERS:
        vars(copied).pop(mover, None)  # bound to the model itself
    if weights is None:
        copied.eval()
    return copied


def recomputing(model: PreTrainedModel, on: bool, name: str) -> PreTrainedModel:
    """Set whether each layer is recomputed in the backward pass, and return the model; use it on a view only.

    Transformers recomputes a layer while the layer itself is in training mode, and silently not otherwise. So that flag
    alone is set, on the layer containers, and the dropout that some of them (OPT) apply themselves becomes zero.

    Raises: ModelError if the family has no such layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if on and not layers:
        raise ModelError(
            f"{name} is of the family {model.config.model_type}, whose layers cannot be recomputed; train it without "
            "checkpointing, in smaller batches."
        )
    for layer in layers:
        layer.gradient_checkpointing = on
        vars(layer)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
        if model.training:
            continue
        layer.training = on
        for setting, value in list(vars(layer).items()):
            if "drop" in setting and isinstance(value, float):
                setattr(layer, setting, 0.0)
    return model


def attention_names(model: PreTrainedModel, base: nn.Module) -> tuple[str, ...]:
    """Return the name of each layer's attention module, found by a pass of two tokens that records every call."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    embedding = model.get_input_embeddings()
    device = storage.device_of(embedding)
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    position_ids = torch.tensor([[2, 3]], device=device)
    with torch.no_grad():
        base(inputs_embeds=embedding(ids), position_ids=position_ids, seam=prefix_attention.Seam({}, seen=seen))
    names = {module: name for name, module in model.named_modules()}
    return tuple(names[module] for module, _, _ in seen)


@dataclass(frozen=True)
class Attention:
    """Hold the attention modules of a site, by name and in order, and the sizes of their keys."""

    names: tuple[str, ...]
    heads: int
    head_size: int


def attention_by_site(model: PreTrainedModel, encoder: nn.Module, decoder: nn.Module) -> dict[str, Attention]:
    """Return the attention modules of an encoder-decoder model by site, found by a pass of two tokens; a decoder's
    layer attends to itself first.

    Raises: ModelError if a layer does not come to the seam by a module of its own.
    """
    read: list[tuple[nn.Module, Tensor, Tensor]] = []
    written: list[tuple[nn.Module, Tensor, Tensor]] = []
    embedding = model.get_input_embeddings()
    embed = embedding(torch.zeros(1, 2, dtype=torch.long, device=storage.device_of(embedding)))
    with torch.no_grad():
        source = encoder(inputs_embeds=embed, seam=prefix_attention.Seam({}, seen=read))[0]
        decoder(
            inputs_embeds=embed,
            encoder_hidden_states=source,
            use_cache=False,
            seam=prefix_attention.Seam({}, seen=written),
        )
    names = {module: name for name, module in model.named_modules()}
    results = {}
    for site, calls in (("encoder", read), ("self", written[::2]), ("cross", written[1::2])):
        own = tuple(names[module] for module, _, _ in calls)
        if not own or len({*own}) != len(own):
            raise ModelError(f"The layers of {type(model).__name__} cannot be told apart at the site {site!r}.")
        _, heads, _, size = calls[0][1].shape
        results[site] = Attention(own, heads, size)
    return results


def embedding_width(embedding: nn.Module) -> int:
    """Return the length of a token's vector. A module in an embedding's place (an adapter's layer) is called with one
    token."""
    if isinstance(embedding, nn.Embedding):
        return embedding.embedding_dim
    with torch.no_grad():
        return embedding(torch.zeros(1, 1, dtype=torch.long, device=storage.device_of(embedding))).shape[-1]


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of tokens that the input embedding has a vector for."""
    embedding = model.get_input_embeddings()
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else int(model.config.vocab_size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
