"""Compute the outer loop's gradient: how the query losses of adapted prompts move with their start, exactly or cheaply.

With phi_0 the start and phi_{i+1} = phi_i - a * g(phi_i), the exact gradient goes back over the stored points: v_k is
the query's gradient at phi_k, and v_i = v_{i+1} - H(phi_i) (a * v_{i+1}). Only one inner step is differentiated twice
at a time, so memory is that of one step, however many there are. What a step size adds is -v_{i+1} * g(phi_i)
(Meta-SGD, Li et al. 2017). Query losses at every point, weighted, are MAML++'s multi-step loss (Antoniou et al. 2019,
eq. 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from foreword.core.shapes import Float, Tensor
from foreword.methods.meta.inner_loop import Held, Leaves, Loss, Path, Product, Rates, adapt, gradient, product, zeros


@dataclass(frozen=True, eq=False)
class MetaGradient:
    """Hold each task's gradient by its start and by its rates (before any broadcasting is summed), and its losses."""

    start: Leaves
    rates: Leaves
    query_T: Float[Tensor, "T"]
    path: Path


def weights_of(steps: int, done: float, multi_step: bool) -> list[float]:
    """Return the weight of the query loss at each of the steps + 1 points: all on the last.

    With `multi_step`, at the outset all points after the first count the same, annealed to the last alone as `done`
    goes from 0 to 1.
    """
    last = [0.0] * steps + [1.0]
    if not multi_step or steps < 2:
        return last
    other = max(0.0, 1.0 - done) / steps
    return [0.0, *[other] * (steps - 1), 1.0 - other * (steps - 1)]


def meta_gradient(
    support: Loss,
    query: Loss,
    start: Leaves,
    rates: Rates,
    weights: Sequence[float],
    times: Product | None = product,
) -> MetaGradient:
    """Return the gradient of the weighted query losses; `weights` has one more number than there are inner steps.

    `times` multiplies a vector with the support's Hessian; None leaves it out, which is first-order MAML.
    """
    steps = len(weights) - 1
    # The last inner step's graph outlives the query's pass, since its product comes next; earlier ones are read again.
    hold = times is product and steps > 0
    path = adapt(support, start, rates, steps - hold)
    held = Held.of(support, support.parts - 1, path.last) if hold else None
    if held:
        path = path.on(*gradient(support, path.last, held), rates)
    moved, by_rates = zeros(start), zeros(start)
    query_T = torch.zeros(support.tasks)
    for i in range(steps, -1, -1):
        if i < steps:
            for name, slope in path.gradients[i].items():
                by_rates[name] -= moved[name] * slope
            if times is not None:
                multiply = partial(product, held=held) if held else times
                curved = multiply(support, path.points[i], {name: rates[name] * v for name, v in moved.items()})
                held = None
                moved = {name: v - curved[name] for name, v in moved.items()}
        if weights[i]:
            loss_T, slope = gradient(query, path.points[i])
            query_T = query_T.to(loss_T) + weights[i] * loss_T
            moved = {name: v + weights[i] * slope[name] for name, v in moved.items()}
    return MetaGradient(moved, by_rates, query_T, path)


def unrolled(support: Loss, query: Loss, start: Leaves, rates: Rates, weights: Sequence[float]) -> MetaGradient:
    """Return what `meta_gradient` does through one graph of all inner steps, whose memory grows with them."""
    first = {name: leaf.detach().requires_grad_() for name, leaf in start.items()}
    # A rate for each task, so that the gradient by it is the task's own.
    own = {name: rates[name].detach().expand_as(leaf).clone().requires_grad_() for name, leaf in start.items()}
    points, gradients, losses = [first], [], []
    total: Tensor | None = None
    for weight in weights:
        if weight:
            part = sum((query.part(n, points[-1], True) for n in range(query.parts)), torch.zeros(()))
            total = weight * part if total is None else total + weight * part
        if len(points) == len(weights):
            break
        loss_T = sum((support.part(n, points[-1], True) for n in range(support.parts)), torch.zeros(()))
        result = torch.autograd.grad(loss_T.sum(), [*points[-1].values()], create_graph=True)
        gradients.append(dict(zip(start, result, strict=True)))
        losses.append(loss_T.detach())
        points.append({name: leaf - own[name] * gradients[-1][name] for name, leaf in points[-1].items()})
    assert total is not None, "some weight is not zero"
    wanted = [*first.values(), *own.values()]
    result = torch.autograd.grad(total.sum(), wanted, allow_unused=True)
    whole = [torch.zeros_like(w) if f is None else f for w, f in zip(wanted, result, strict=True)]
    cut = [{name: t.detach() for name, t in leaves.items()} for leaves in points]
    slopes = [{name: t.detach() for name, t in leaves.items()} for leaves in gradients]
    return MetaGradient(
        dict(zip(start, whole[: len(start)], strict=True)),
        dict(zip(start, whole[len(start) :], strict=True)),
        total.detach(),
        Path(tuple(cut), tuple(slopes), tuple(losses)),
    )


def reptile(support: Loss, start: Leaves, rates: Rates, steps: int) -> MetaGradient:
    """Return the start minus the inner loop's end (Nichol et al. 2018, algorithm 1): a direction, not a gradient."""
    path = adapt(support, start, rates, steps)
    apart = {name: leaf - path.last[name] for name, leaf in start.items()}
    return MetaGradient(apart, zeros(start), path.loss_kT[-1], path)


def spread(leaves: Leaves, tasks: int) -> Leaves:
    """Return one start for every task, as views."""
    return {name: leaf.detach()[None].expand(tasks, *leaf.shape) for name, leaf in leaves.items()}


def mean(leaves: Leaves) -> Leaves:
    """Return the gradient, by a start that tasks share, of the mean over tasks."""
    return {name: leaf.mean(0) for name, leaf in leaves.items()}
