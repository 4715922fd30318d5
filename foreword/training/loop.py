"""Run the one gradient loop: step a list of learners together, and stop each on its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.errors import ForewordError, ModelError
from foreword.inference.batched import stacked_scores
from foreword.models.base import FrozenLM
from foreword.tasks.label_metrics import accuracy, nll
from foreword.training.contract import Learner, Progress, Step
from foreword.training.examples import ExampleRows, mean_nll
from foreword.training.joint_step import step_gradients
from foreword.training.optimizers import learning_rate, make_optimizer


@dataclass(eq=False)
class Run:
    """Hold the state of one learner in training: its step, its scores, and the best leaves so far."""

    name: str
    learner: Learner
    train: ExampleRows
    dev: ExampleRows
    seed: int
    step: int = 0
    loss: float = float("nan")
    best: tuple[float, float] | None = None
    best_step: int = 0
    best_leaves: dict[str, Tensor] = field(default_factory=dict)
    misses: int = 0
    seconds: float = 0.0
    examples: int = 0
    error: ForewordError | None = None
    stopped: bool = False
    settled: bool = True  # False while a step or its evaluation is under way: no state to go on from
    last_metric: float = float("nan")
    curve: list[tuple[int, float]] = field(default_factory=list)  # by step: accuracy on validation rows, or their loss

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(list(self.learner.leaves.values()), self.learner.config)

    @property
    def done(self) -> bool:
        return self.stopped or self.error is not None or self.step >= self.learner.config.steps

    def final_leaves(self) -> dict[str, Tensor]:
        if self.learner.config.keep == "best" and self.best_leaves:
            return self.best_leaves
        return self.learner.leaves

    def state(self) -> dict[str, Any]:
        """Return everything that resuming needs; the order of rows follows from the seed and the step."""
        return {
            "leaves": {k: v.detach() for k, v in self.learner.leaves.items()},
            "best_leaves": self.best_leaves,
            "optimizer": self.optimizer.state_dict(),
            "counters": {
                k: getattr(self, k)
                for k in ("step", "loss", "best", "best_step", "misses", "seconds", "examples", "stopped", "curve")
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a state that `state` returned."""
        with torch.no_grad():
            for name, tensor in state["leaves"].items():
                self.learner.leaves[name].copy_(tensor)
        # Copies on the leaves' device; and products of memory that is aligned otherwise, as a file's is, may round so.
        self.best_leaves = {
            k: torch.empty_like(self.learner.leaves[k]).copy_(v) for k, v in state["best_leaves"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["counters"].items():
            setattr(self, name, tuple(value) if name == "best" and value is not None else value)
        self.curve = [(int(step), float(accuracy)) for step, accuracy in self.curve]


def batch_rows(run: Run, step: int) -> list[int]:
    """Return the rows of a step. Every epoch is a permutation drawn from the seed and the epoch's number alone."""
    n, size = len(run.train), run.learner.config.batch_size
    size = min(size, n)
    first = step * size
    rows: list[int] = []
    for epoch in range(first // n, (first + size - 1) // n + 1):
        order = np.random.default_rng([run.seed, epoch]).permutation(n)
        rows += [int(order[i - epoch * n]) for i in range(max(first, epoch * n), min(first + size, (epoch + 1) * n))]
    return rows


def fit(
    lm: FrozenLM,
    runs: Sequence[Run],
    *,
    progress: Progress | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Train every run to its own end, all active ones in mixed batches. A run that fails keeps its error.

    `after_step` is called with the number of joint steps done; it writes checkpoints.
    """
    budget = min(run.learner.config.tokens_per_batch or lm.batch_tokens for run in runs)
    joint = 0
    while active := [run for run in runs if not run.done]:
        began = time.perf_counter()
        for run in active:
            run.settled = False
        budget = _joint_step(lm, active, budget)
        due = [r for r in active if r.error is None and (r.step % r.learner.config.eval_every == 0 or r.done)]
        evaluate(lm, [r for r in due if len(r.dev) and r.learner.own is None], budget)
        for run in due:
            if run.learner.own is not None and (score := run.learner.own.measure(run.learner.leaves)) is not None:
                _judge(run, score)
        took = (time.perf_counter() - began) / len(active)
        for run in active:
            run.seconds += took
            run.settled = True
        for run in active:
            if progress:
                _tell(progress, runs.index(run), run, measured=run in due)
        joint += 1
        if after_step:
            after_step(joint)


def _joint_step(lm: FrozenLM, active: Sequence[Run], budget: int) -> int:
    """Take one step of every active run; return the tokens a batch that fitted."""
    for run in active:
        run.optimizer.zero_grad(set_to_none=True)
    if active[0].learner.own is not None:
        for run in active:
            _own_step(run)
        return budget
    examples = []
    for owner, run in enumerate(active):
        rows = batch_rows(run, run.step)
        examples += run.train.examples(owner, rows, run.step * len(rows), run.seed)
        run.examples += len(rows)
    read = active[0].learner.lm or lm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(active[0].seed * 1_000_003 + active[0].step)
        losses, budget = step_gradients(read, [run.learner for run in active], examples, budget)
    for run, loss in zip(active, losses, strict=True):
        _move(run, loss)
    return budget


def _own_step(run: Run) -> None:
    """Take a step whose gradient the learner computes itself, such as that of a meta-batch."""
    step = run.learner.own
    assert step is not None, "learners with steps of their own train alone"
    loss = step.gradients(run.learner.leaves, run.step)
    run.examples += step.rows
    _move(run, loss)


def _move(run: Run, loss: float) -> None:
    """Clip the gradients in the leaves and step, unless the loss or a gradient is not a number."""
    leaves = list(run.learner.leaves.values())
    run.loss = loss
    if not np.isfinite(loss) or any(p.grad is not None and not torch.isfinite(p.grad).all() for p in leaves):
        run.error = ModelError(
            f"{run.name}: the loss or its gradient is not a number at step {run.step + 1} (loss {loss:.3g}). "
            f"Lower learning_rate (now {run.learner.config.learning_rate:g}), or use --dtype float32."
        )
        return
    if run.learner.config.clip:
        torch.nn.utils.clip_grad_norm_(leaves, run.learner.config.clip)
    for name, share in run.learner.shares.items():
        if (slope := run.learner.leaves[name].grad) is not None:
            slope.mul_(share)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.learner.config, run.step)
    run.optimizer.step()
    run.step += 1


@torch.no_grad()
def evaluate(lm: FrozenLM, runs: Sequence[Run], budget: int) -> None:
    """Score the validation rows, remember the best leaves, and stop the runs whose patience has ended.

    Accuracy decides first, then likelihood. For text, the likelihood per token of all references decides alone.
    """
    if not runs:
        return
    values: list[Learnt] = [run.learner.build(run.learner.leaves) for run in runs]
    read = runs[0].learner.lm or lm
    scores = stacked_scores(read, values, [run.dev.encoded for run in runs], budget)
    for run, score_NC in zip(runs, scores, strict=True):
        if run.dev.of_N:
            loss = mean_nll(run.dev, score_NC)
            _judge(run, (-loss, 0.0), loss)
            continue
        score = score_NC.double().cpu().numpy()
        label = np.asarray(run.dev.label_N)
        _judge(run, (float(accuracy(score, label)), -float(nll(score, label))))


def _judge(run: Run, score: tuple[float, float], reported: float | None = None) -> None:
    """Keep the leaves if they are the best so far; stop the run if its patience has ended.

    `reported` is the value shown to the user; by default the first element of `score`.
    """
    config = run.learner.config
    if run.best is None or score > run.best:
        run.best, run.best_step, run.misses = score, run.step, 0
        if config.keep == "best":
            run.best_leaves = {k: v.detach().clone() for k, v in run.learner.leaves.items()}
    else:
        run.misses += 1
        run.stopped = bool(config.patience) and run.misses >= config.patience
    run.last_metric = score[0] if reported is None else reported
    run.curve.append((run.step, run.last_metric))


def _tell(progress: Progress, job: int, run: Run, measured: bool) -> None:
    rate = run.examples / run.seconds if run.seconds else 0.0
    left = run.seconds / max(1, run.step) * (run.learner.config.steps - run.step)
    metric = run.last_metric if measured and run.best is not None else None
    progress(Step(job, run.name, run.step, run.learner.config.steps, run.loss, metric, rate, left))
