"""Take a step of meta-training, and validate: the training loop calls this in place of steps over rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch

from foreword.core.shapes import Tensor
from foreword.methods.meta.episode_rows import EpisodeRows, Part
from foreword.methods.meta.inner_loop import Leaves, Loss, Path, Product, adapt, finite_product, gradient, product
from foreword.methods.meta.meta_gradient import MetaGradient, mean, meta_gradient, reptile, spread, unrolled, weights_of
from foreword.methods.meta.task_losses import MODEL, TEXT_BYTES, EpisodeRow, PromptLoss, Shape, Texts, scores_of
from foreword.models.base import FrozenLM
from foreword.models.memory import fitting
from foreword.tasks.episodes import Episode
from foreword.tasks.label_metrics import accuracy, nll
from foreword.training.contract import OwnStep

RATE = "rate."  # before the name of the leaf whose step sizes it holds, as logarithms of shares of the inner rate
VALIDATION_SEED = 0  # one set of validation episodes for every run


@final
@dataclass(frozen=True)
class MetaPlan:
    """Hold the options of a meta-step; the fields are those of the method's config."""

    algorithm: Literal["maml", "fomaml", "reptile", "multitask", "vocabulary"]
    second_order: Literal["chain", "unrolled", "finite"]
    inner_steps: int
    inner_rate: float
    model_rate: float
    multi_step: bool
    tasks: int
    validation_episodes: int
    steps: int

    @property
    def twice(self) -> bool:
        """Return whether anything is differentiated twice."""
        return self.algorithm == "maml" and self.second_order != "finite"


class Lens(ABC):
    """Define how a kind of learner reads folded rows: losses that can be differentiated, and scores."""

    @abstractmethod
    def loss(self, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], tasks: int, budget: int) -> Loss:
        """Return the mean loss of each task on its query rows, or on its support rows if no query is given."""

    @abstractmethod
    def scores(
        self, leaves: Leaves, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], budget: int
    ) -> list[Tensor]:
        """Return the scores of every query row under its task's leaves, in order."""


@final
class PromptLens(Lens):
    """Read rows with a prompt, and score them by their label words."""

    def __init__(self, lm: FrozenLM, twice: FrozenLM, shape: Shape):
        self._lm, self._twice, self._shape = lm, twice, shape
        self._texts = Texts(lm, TEXT_BYTES) if shape.form == "soft" else None

    def loss(self, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], tasks: int, budget: int) -> Loss:
        return PromptLoss(self._lm, self._twice, self._shape, query or support, tasks, budget, self._texts)

    def scores(
        self, leaves: Leaves, support: Sequence[EpisodeRow], query: Sequence[EpisodeRow], budget: int
    ) -> list[Tensor]:
        return scores_of(self._lm, self._shape, leaves, query, budget)


def rates_of(plan: MetaPlan, leaves: Mapping[str, Tensor]) -> Leaves:
    """Return the inner step size of every leaf, broadcast over tasks: the plan's, times the factor that was learnt."""
    results: Leaves = {}
    for name, leaf in leaves.items():
        if name.startswith(RATE):
            continue
        rate = plan.model_rate if name.startswith(MODEL) else plan.inner_rate
        learnt = leaves.get(RATE + name)
        base = leaf.new_full((1,) * leaf.ndim, rate)
        results[name] = (base if learnt is None else base * learnt.detach().exp())[None]
    return results


def points_of(leaves: Mapping[str, Tensor]) -> Leaves:
    """Return the leaves that adapt: all but step sizes."""
    return {name: leaf.detach() for name, leaf in leaves.items() if not name.startswith(RATE)}


def adapted(
    lens: Lens, plan: MetaPlan, leaves: Mapping[str, Tensor], support: Sequence[EpisodeRow], tasks: int, budget: int
) -> Leaves:
    """Return the leaves of every task after the inner loop on its support rows, as a stack."""
    start = spread(points_of(leaves), tasks)
    if not plan.inner_steps:
        return start
    return adapt(lens.loss(support, (), tasks, budget), start, rates_of(plan, leaves), plan.inner_steps).last


@final
class MetaStep(OwnStep):
    """Step over meta-batches of episodes. Episode n of step s is number s * tasks + n of the run's seed."""

    def __init__(
        self,
        lens: Lens,
        deck: EpisodeRows,
        plan: MetaPlan,
        seed: int,
        budget: int,
        record: Callable[[Mapping[str, Tensor]], dict[str, Any]],
        alone: bool = False,
    ):
        """Prepare the steps. `alone` reads a meta-batch's tasks one by one, as their weights cannot share a pass."""
        self.lens, self.deck, self.plan, self.seed, self.budget = lens, deck, plan, seed, budget
        self._record, self._alone = record, alone
        self._validation: list[Episode] = []
        if plan.validation_episodes and deck.source.has("validation"):
            self._validation = deck.source.episodes("validation", VALIDATION_SEED, plan.validation_episodes)
        first = deck.source.draw("train", seed, 0)
        self.rows = plan.tasks * (len(first.support) + len(first.query))

    def gradients(self, leaves: Mapping[str, Tensor], step: int) -> float:
        count = self.plan.tasks
        episodes = self.deck.source.episodes("train", self.seed, count, step * count)
        groups = [[e] for e in episodes] if self._alone else [episodes]
        total: Leaves = {}
        loss = 0.0
        for group in groups:
            found, by_rates = self._fitting(lambda budget, some=group: self._gradient(leaves, some, step, budget))
            loss += float(found.query_T.mean()) / len(groups)
            for name, slope in {**mean(found.start), **by_rates}.items():
                total[name] = total[name] + slope / len(groups) if name in total else slope / len(groups)
        if self.plan.algorithm != "vocabulary":
            for name, leaf in leaves.items():
                leaf.grad = total[name].to(leaf.dtype) if name in total else None
        return loss

    def _gradient(
        self, leaves: Mapping[str, Tensor], episodes: list[Episode], step: int, budget: int
    ) -> tuple[MetaGradient, Leaves]:
        """Return the gradients of these tasks' losses by their starts, and of their mean by the learnt step sizes."""
        plan, count = self.plan, len(episodes)
        start, rates = spread(points_of(leaves), count), rates_of(self.plan, leaves)

        def loss(*parts: Part) -> Loss:
            support = self.deck.folds("train", episodes, ("support",))
            query = self.deck.folds("train", episodes, parts) if parts else ()
            return self.lens.loss(support, query, count, budget)

        if plan.algorithm in ("multitask", "vocabulary"):
            loss_T, slope = gradient(loss("support", "query"), start)
            return MetaGradient(slope, {}, loss_T, Path((start,), (), ())), {}
        if plan.algorithm == "reptile":
            return reptile(loss("support", "query"), start, rates, plan.inner_steps), {}
        weights = weights_of(plan.inner_steps, 2 * step / plan.steps, plan.multi_step)
        if plan.algorithm == "maml" and plan.second_order == "unrolled":
            match = unrolled(loss(), loss("query"), start, rates, weights)
        else:
            times: dict[str, Product] = {"chain": product, "finite": finite_product}
            chosen = times[plan.second_order] if plan.algorithm == "maml" else None
            match = meta_gradient(loss(), loss("query"), start, rates, weights, chosen)
        by_rates: Leaves = {}
        for name, slope in match.rates.items():
            if (leaf := leaves.get(RATE + name)) is not None:
                # The step size is the inner rate times the leaf's exponential, so its own derivative by the leaf.
                by_rates[RATE + name] = (slope * rates[name]).mean(0).sum_to_size(leaf.shape)
        return match, by_rates

    def measure(self, leaves: Mapping[str, Tensor]) -> tuple[float, float] | None:
        """Return the mean query accuracy and log-likelihood of the validation episodes; None if there are none.

        They are measured after the inner loop on the episodes' support rows.
        """
        results = [
            measured
            for first in range(0, len(self._validation), self.plan.tasks)
            for measured in self._measured(leaves, self._validation[first : first + self.plan.tasks])
        ]
        if not results:
            return None
        right, surprise = np.mean(results, axis=0)
        return float(right), -float(surprise)

    def _measured(self, leaves: Mapping[str, Tensor], episodes: list[Episode]) -> list[tuple[float, float]]:
        measured = []
        for group in [[e] for e in episodes] if self._alone else [episodes]:
            support, query = (self.deck.folds("validation", group, (part,)) for part in ("support", "query"))

            def scored(
                budget: int, s: list[EpisodeRow] = support, q: list[EpisodeRow] = query, n: int = len(group)
            ) -> list[Tensor]:
                return self.lens.scores(adapted(self.lens, self.plan, leaves, s, n, budget), s, q, budget)

            scores = self._fitting(scored)
            for number in range(len(group)):
                own = [i for i, row in enumerate(query) if row.task == number]
                score_BC = torch.stack([scores[i] for i in own]).double().numpy()
                label_B = np.array([query[i].label for i in own])
                measured.append((accuracy(score_BC, label_B), nll(score_BC, label_B)))
        return measured

    def record(self, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
        told = self._record(leaves)
        hashes = {"validation": self.deck.source.hash("validation", self._validation)} if self._validation else {}
        return {**told, "episodes": {**told["episodes"], "hashes": hashes}}

    def _fitting(self, work: Callable[[int], Any]) -> Any:
        """Do the work within the budget of tokens, and return its result.

        If memory runs out the budget is halved, with one line on stderr. Raises: ModelError if a few tokens are too
        many.
        """
        refusal = "{} tokens a batch. Use a smaller model, a lower max_length or --dtype bfloat16"
        result, self.budget = fitting(work, self.budget, min(self.budget, 8), refusal)
        return result
