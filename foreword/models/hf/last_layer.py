"""Run the last layer for only those positions that are read: keys and values of all tokens, the rest for those
alone."""

import copy
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword.core.shapes import Tensor
from foreword.models.hf.prefix_attention import Enough, Seam


class LastLayer(nn.Module):
    """Take the place of the last layer in a model's list of layers, and change nothing unless the seam names what is
    read.

    The layer is called twice, so that its own code decides everything: for every token, until its attention has keys
    and values; and in full, for the tokens read, with those keys and values. Their states come first in the output, and
    zeros follow, since models expect an output as long as the input.
    """

    def __init__(self, layer: GradientCheckpointingLayer):
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        """Return the layer's own attribute for one that this module lacks, since a model reads some of its last layer
        (its kind of attention, say)."""
        own = super().__getattr__
        try:
            return own(name)
        except AttributeError:
            return getattr(own("layer"), name)

    def forward(self, hidden_1XD: Tensor, *args: Any, seam: Seam | None = None, **keywords: Any) -> Tensor:
        recomputed = self.layer.gradient_checkpointing and self.layer.training
        if seam is None or seam.rows is None or seam.rows.read_Y is None or recomputed:
            return self.layer(hidden_1XD, *args, seam=seam, **keywords)
        read_Y = seam.rows.read_Y.to(hidden_1XD.device)
        tokens = hidden_1XD.shape[1]
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        with suppress(Enough):
            self.layer(hidden_1XD, *args, seam=replace(seam, seen=seen, enough=1), **keywords)
        told = replace(seam, given=seen[0][1:])

        def taken(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == tokens:
                return value.index_select(1, read_Y.to(value.device))
            return value

        args, keywords = tree_map(taken, (args, keywords))
        out_1YD = self.layer(taken(hidden_1XD), *args, seam=told, **keywords)
        seam.rows.pruned.append(True)
        return F.pad(out_1YD, (0, 0, 0, tokens - len(read_Y)))


def reading_last(model: nn.Module, base: nn.Module, attention: str) -> nn.Module | None:
    """Return the base model with its last layer in a `LastLayer`; modules are shared but for the lists that lead there.

    `attention` names the last layer's attention within `model`. Return None if that is not in a list of layers that
    transformers could recompute one by one.
    """
    result = None
    parts = attention.split(".")
    for depth in range(len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:depth])), nn.ModuleList):
            result = depth
    names = {id(module): name for name, module in model.named_modules()}
    start = names[id(base)].split(".") if names[id(base)] else []
    if result is None or parts[: len(start)] != start:
        return None
    layer = model.get_submodule(".".join(parts[: result + 1]))
    if not isinstance(layer, GradientCheckpointingLayer):
        return None
    return with_module(base, parts[len(start) : result + 1], LastLayer(layer))


def with_module(module: nn.Module, path: list[str], replacement: nn.Module) -> nn.Module:
    """Return a shallow copy of a module in which the module at `path` is replaced."""
    if not path:
        return replacement
    copied = copy.copy(module)
    children = dict(module._modules)
    child = children[path[0]]
    assert child is not None, "the path was read off the module's own names"
    children[path[0]] = with_module(child, path[1:], replacement)
    vars(copied)["_modules"] = children
    return copied
