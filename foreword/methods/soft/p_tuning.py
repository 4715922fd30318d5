"""Learn input embeddings in the template's slots through a small network that is folded away (Liu et al. 2021)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch.nn.functional import linear, relu

from foreword.core.doc import Doc, documented
from foreword.core.prompts import SoftPrompt
from foreword.core.shapes import Float, Tensor
from foreword.methods.soft.prompt_tuning import OWN, SlotConfig, initial_prompt
from foreword.models.base import FrozenLM
from foreword.training.contract import GradientMethod, Job, Learner
from foreword.training.options import Count, Positive

Leaves = Mapping[str, Tensor]


@documented
@dataclass(frozen=True)
class PTuningConfig(SlotConfig):
    """Hold the options of p-tuning.

    The network reads a learnt table with a row for each position. It runs once a step, and its output, which is zero at
    first, is added to the prompt that `init` draws. The network of the paper and of PEFT gives the whole prompt, from a
    random initialisation. On validation rows neither was shown to be better (LOG.md); with this one, p-tuning differs
    from prompt tuning in the network only.
    """

    encoder: Annotated[
        Literal["mlp", "lstm"],
        Doc("Network: mlp has three layers with ReLU, lstm has two bidirectional layers and two with ReLU."),
    ] = "mlp"
    hidden: Annotated[
        Count | None, Doc("Units of each hidden layer, in an LSTM each way (none: the model's width).")
    ] = None
    learning_rate: Annotated[Positive, Doc("Learning rate (not given: 3e-4).")] = OWN

    def __post_init__(self) -> None:
        if self.learning_rate == OWN:
            object.__setattr__(self, "learning_rate", 3e-4)


class PTuning(GradientMethod):
    name = "p-tuning"
    summary = "input embeddings in the template's slots, learnt through a network"
    source = "Liu et al. 2021"
    Config = PTuningConfig
    form = "soft"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = True
    freezes_lm = True
    takes_init = "soft"
    answers = ("labels", "options", "text")

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        config: PTuningConfig = job.config
        generator = torch.Generator().manual_seed(job.seed)
        form, initial = initial_prompt(lm, job, generator)
        length, width = initial.shape
        draw, encode = {"mlp": (mlp_leaves, mlp), "lstm": (lstm_leaves, lstm)}[config.encoder]
        drawn = {
            "table": torch.randn(length, width, generator=generator),
            **draw(width, config.hidden or width, generator),
        }
        leaves = {name: leaf.to(lm.device).requires_grad_() for name, leaf in drawn.items()}

        def build(leaves: Leaves) -> SoftPrompt:
            return SoftPrompt(initial + encode(leaves["table"], leaves))

        return Learner(leaves, build, form, config)


def mlp_leaves(width: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw three layers, width to width; the last is zero."""
    sizes = (width, hidden, hidden, width)
    return _layers("mlp", sizes, generator)


def mlp(table_PD: Float[Tensor, "P D"], leaves: Leaves) -> Float[Tensor, "P D"]:
    """Run the three layers of `mlp_leaves`."""
    return _perceptron(table_PD, "mlp", 3, leaves)


def lstm_leaves(width: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw two LSTM layers, each with both directions stacked (forward first), then two layers; the last is zero.

    The gates' rows are in the order input, forget, cell, output. There is one bias; some libraries keep two.
    """
    uniform = _uniform(generator)
    leaves = {}
    for layer, inputs in enumerate((width, 2 * hidden)):
        leaves[f"lstm.{layer}.input"] = uniform(2, 4 * hidden, inputs, scale=hidden)
        leaves[f"lstm.{layer}.hidden"] = uniform(2, 4 * hidden, hidden, scale=hidden)
        leaves[f"lstm.{layer}.bias"] = uniform(2, 4 * hidden, scale=hidden)
    return {**leaves, **_layers("mlp", (2 * hidden, 2 * hidden, width), generator)}


def lstm(table_PD: Float[Tensor, "P D"], leaves: Leaves) -> Float[Tensor, "P D"]:
    """Run both directions of a layer as one batch of two.

    It is plain arithmetic, so that it is the same on every device and can be differentiated twice.
    """
    state_PX = table_PD
    for layer in range(2):
        both = torch.stack([state_PX, state_PX.flip(0)])
        weight, bias = leaves[f"lstm.{layer}.input"], leaves[f"lstm.{layer}.bias"]
        gates_P2X = (both @ weight.mT + bias[:, None]).unbind(1)
        forward, backward = _recur(gates_P2X, leaves[f"lstm.{layer}.hidden"]).unbind(1)
        state_PX = torch.cat([forward, backward.flip(0)], dim=1)
    return _perceptron(state_PX, "mlp", 2, leaves)


def _recur(gates_P2X: tuple[Float[Tensor, "2 X"], ...], weight_2XH: Float[Tensor, "2 X H"]) -> Float[Tensor, "P 2 H"]:
    """Return the hidden state of each position, from zero (Hochreiter & Schmidhuber 1997, with forget gates)."""
    hidden_2H = cell_2H = weight_2XH.new_zeros(weight_2XH.shape[0], weight_2XH.shape[2])
    states = []
    for gates_2X in gates_P2X:
        recurrent_2X = (weight_2XH @ hidden_2H[..., None])[..., 0]
        put, keep, new, show = (gates_2X + recurrent_2X).chunk(4, dim=1)
        cell_2H = keep.sigmoid() * cell_2H + put.sigmoid() * new.tanh()
        hidden_2H = show.sigmoid() * cell_2H.tanh()
        states.append(hidden_2H)
    return torch.stack(states)


def _perceptron(state_PX: Tensor, name: str, layers: int, leaves: Leaves) -> Tensor:
    """Run linear layers with ReLU between them."""
    for layer in range(layers):
        state_PX = linear(state_PX, leaves[f"{name}.{layer}.weight"], leaves[f"{name}.{layer}.bias"])
        if layer < layers - 1:
            state_PX = relu(state_PX)
    return state_PX


def _layers(name: str, sizes: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """Draw weights and biases of linear layers; the last layer is zero."""
    uniform = _uniform(generator)
    leaves = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        leaves[f"{name}.{layer}.weight"] = uniform(outputs, inputs, scale=inputs)
        leaves[f"{name}.{layer}.bias"] = uniform(outputs, scale=inputs)
    for part in ("weight", "bias"):
        leaves[f"{name}.{len(sizes) - 2}.{part}"].zero_()
    return leaves


def _uniform(generator: torch.Generator) -> Callable[..., Tensor]:
    def draw(*sizes: int, scale: int) -> Tensor:
        return (torch.rand(*sizes, generator=generator) * 2 - 1) / scale**0.5

    return draw
