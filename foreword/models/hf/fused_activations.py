"""Replace activations that transformers writes out in several operations by torch's single operation for the same
function."""

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

WRITTEN_OUT = (NewGELUActivation, FastGELUActivation)


def fuse_activations(model: nn.Module) -> None:
    """Replace the activations of a view, never of the model itself. Each of the seven operations of GPT-2's gelu keeps
    a tensor of the widest layer for the backward pass."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, WRITTEN_OUT):
                setattr(module, name, nn.GELU(approximate="tanh"))
