"""Run the inner loop: prompts of many tasks adapt side by side, each on its own support set; their paths are kept.

Leaves are tensors by name whose first axis counts tasks. A loss is separable, so the gradient of the sum over tasks is
the stack of each task's own gradient (Finn et al. 2017, algorithm 1, lines 5 and 6, for all tasks at once).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from foreword.core.shapes import Float, Tensor

Leaves = dict[str, Tensor]
RADIUS = 1e-3  # of a finite difference, as a share of the length of a task's leaves


class Loss(ABC):
    """Compute the mean loss of every task on rows of its own, in parts that are read one after the other."""

    tasks: int

    @property
    @abstractmethod
    def parts(self) -> int:
        """Return the number of passes it takes."""

    @abstractmethod
    def part(self, number: int, leaves: Mapping[str, Tensor], twice: bool) -> Float[Tensor, "T"]:
        """Return what one pass adds to the loss of each task; with `twice` it can be differentiated twice."""


Rates = Mapping[str, Tensor]  # what each leaf moves by, times its gradient; broadcast over tasks
Product = Callable[[Loss, Leaves, Leaves], Leaves]


def zeros(leaves: Mapping[str, Tensor]) -> Leaves:
    return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}


def cut(leaves: Mapping[str, Tensor]) -> Leaves:
    """Return the same numbers as new leaves, apart from the graph."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}


@dataclass(frozen=True, eq=False)
class Held:
    """Hold one pass with its graph, so that a product with the Hessian need not read it again.

    The graph of its gradient is made only when the product is: as large again, it would outlive other passes.
    """

    loss_T: Float[Tensor, "T"]
    leaves: Leaves

    @staticmethod
    def of(loss: Loss, number: int, leaves: Leaves) -> "Held":
        own = cut(leaves)
        return Held(loss.part(number, own, True), own)

    def slopes(self, twice: bool) -> tuple[Tensor | None, ...]:
        """Return the gradient of the pass; the graph stays."""
        return torch.autograd.grad(
            self.loss_T.sum(), [*self.leaves.values()], create_graph=twice, retain_graph=True, allow_unused=True
        )

    def times(self, vector: Leaves) -> tuple[Tensor | None, ...]:
        """Return what the pass adds to the product with each task's vector; the graph is used up."""
        dots = [(g * v).sum() for g, v in zip(self.slopes(True), vector.values(), strict=True) if g is not None]
        dot = torch.stack(dots).sum() if dots else torch.zeros(())
        if not dot.requires_grad:
            return (None,) * len(self.leaves)
        return torch.autograd.grad(dot, [*self.leaves.values()], allow_unused=True)


def gradient(loss: Loss, leaves: Leaves, held: Held | None = None) -> tuple[Float[Tensor, "T"], Leaves]:
    """Return the loss of each task and its gradient, one pass after the other; nothing of a pass stays.

    `held` is the last pass at these leaves, if it was kept.
    """
    own, result = cut(leaves), zeros(leaves)
    total: Tensor | None = None
    for number in range(loss.parts):
        if held and number == loss.parts - 1:
            loss_T, slopes = held.loss_T, held.slopes(False)
        else:
            loss_T = loss.part(number, own, False)
            slopes = torch.autograd.grad(loss_T.sum(), [*own.values()], allow_unused=True)
        total = loss_T.detach() if total is None else total + loss_T.detach()
        _add(result, slopes)
    assert total is not None, "a loss has a pass"
    return total, result


def product(loss: Loss, leaves: Leaves, vector: Leaves, held: Held | None = None) -> Leaves:
    """Return the Hessian of each task's loss times its own vector.

    It differentiates the product of the gradient with the vector. `held` is the last pass at these leaves, if it was
    kept.
    """
    result = zeros(leaves)
    for number in range(loss.parts):
        last = number == loss.parts - 1
        _add(result, (held if held and last else Held.of(loss, number, leaves)).times(vector))
    return result


def finite_product(loss: Loss, leaves: Leaves, vector: Leaves, radius: float = RADIUS) -> Leaves:
    """Return what `product` does, by central differences of the gradient: two first-order passes, for any attention.

    The step of a task is `radius` times the length of its leaves over that of its vector.
    """
    size_T, far_T = _length(leaves), _length(vector)
    step_T = torch.where(far_T > 0, radius * size_T.clamp(min=1e-12) / far_T.clamp(min=1e-30), 0)

    def moved(sign: int) -> Leaves:
        return {name: leaf + sign * _over(step_T, leaf) * vector[name] for name, leaf in leaves.items()}

    _, up = gradient(loss, moved(1))
    _, down = gradient(loss, moved(-1))
    half_T = torch.where(step_T > 0, 0.5 / step_T.clamp(min=1e-30), 0)
    return {name: (up[name] - down[name]) * _over(half_T, up[name]) for name in leaves}


@dataclass(frozen=True, eq=False)
class Path:
    """Hold the points of the inner loop: k + 1 points, and the gradient and loss at each of the first k."""

    points: tuple[Leaves, ...]
    gradients: tuple[Leaves, ...]
    loss_kT: tuple[Float[Tensor, "T"], ...]

    @property
    def last(self) -> Leaves:
        return self.points[-1]

    def on(self, loss_T: Float[Tensor, "T"], slope: Leaves, rates: Rates) -> "Path":
        """Return the path with one more step of gradient descent."""
        point = {name: leaf - rates[name] * slope[name] for name, leaf in self.last.items()}
        return Path((*self.points, point), (*self.gradients, slope), (*self.loss_kT, loss_T))


def adapt(support: Loss, start: Leaves, rates: Rates, steps: int) -> Path:
    """Return the path of `steps` steps of gradient descent from `start`.

    What is kept of a step is as large as the leaves, whatever the model.
    """
    path = Path(({name: leaf.detach() for name, leaf in start.items()},), (), ())
    for _ in range(steps):
        path = path.on(*gradient(support, path.last), rates)
    return path


def _add(found: Leaves, more: tuple[Tensor | None, ...]) -> None:
    for name, tensor in zip(found, more, strict=True):
        if tensor is not None:
            found[name] += tensor


def _length(leaves: Leaves) -> Float[Tensor, "T"]:
    return torch.stack([leaf.flatten(1).square().sum(1) for leaf in leaves.values()]).sum(0).sqrt()


def _over(value_T: Tensor, like: Tensor) -> Tensor:
    return value_T.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
