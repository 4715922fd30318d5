"""Views of a model: its modules and config copied, its tensors shared. What is set on a view never reaches the model."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foreword.core.shapes import Tensor
from foreword.models.hf import seam


def view_of(model: PreTrainedModel, weights: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
    """A copy of the module tree over the same storage, with some weights (by name) replaced.

    Tied weights stay tied, since they are replaced by identity. With `weights=None` the model is a stranger's: the view
    is frozen and in eval mode whatever the model is.
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
    copied = copy.deepcopy(model, memo)
    if weights is None:
        copied.eval()
    return copied


def recomputing(model: PreTrainedModel, on: bool) -> PreTrainedModel:
    """Turn gradient checkpointing on or off on a view.

    Transformers recomputes a layer only while the layer itself is in training mode, so that flag alone is set, on the
    layer containers, and the dropout some of them (OPT) apply themselves is set to zero.
    """
    if not on:
        model.gradient_checkpointing_disable()
        return model.eval()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if model.training:
        return model
    for module in model.modules():
        if vars(module).get("gradient_checkpointing"):
            module.training = True
            for name, value in list(vars(module).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
    return model


def attention_names(model: PreTrainedModel, base: nn.Module) -> tuple[str, ...]:
    """The attention module of each layer by name, found by asking: two tokens go through and every call is noted.

    Empty where a module serves several layers (ALBERT) or attention does not come to the seam at all.
    """
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    embedding = model.get_input_embeddings()
    ids = torch.zeros(1, 2, dtype=torch.long, device=embedding.weight.device)
    position_ids = torch.tensor([[2, 3]], device=ids.device)
    with torch.no_grad():
        base(inputs_embeds=embedding(ids), position_ids=position_ids, seam=seam.Seam({}, seen=seen))
    called = [module for module, _, _ in seen]
    if len({*called}) != len(called) or len(called) != model.config.num_hidden_layers:
        return ()
    names = {module: name for name, module in model.named_modules()}
    return tuple(names[module] for module in called)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
