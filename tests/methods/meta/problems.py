"""Losses with answers known otherwise: quadratics in closed form, and drawn rows over random models."""

from collections.abc import Mapping

import torch
from torch import Tensor

from foreword.methods.meta.inner_loop import Loss
from foreword.methods.meta.task_losses import EpisodeRow, PromptLoss, Shape
from foreword.models.encoding.encoder import Encoder
from foreword.models.load import load
from foreword.tasks.task import Task
from tests.models.zoo import frozen

WORDS = "river garden window teacher winter bread horse letter music island doctor bridge candle summer orange".split()
TEMPLATES = {
    "masked": "{text|shorten} {soft:3} : {mask} .",
    "causal": "{text|shorten} {soft:3} so it is {answer}",
    "front": "{soft:3} {text|shorten} : {answer}",
}


class Quadratic(Loss):
    """1/2 (p - c)' A (p - c) of every task, in two parts."""

    def __init__(self, a_Tnn: Tensor, c_Tn: Tensor):
        self.tasks, self.a, self.c = len(a_Tnn), a_Tnn, c_Tn

    @property
    def parts(self) -> int:
        return 2

    def part(self, number: int, leaves: Mapping[str, Tensor], twice: bool) -> Tensor:
        apart = leaves["p"] - self.c
        return 0.25 * torch.einsum("ti,tij,tj->t", apart, self.a, apart)


def quadratics(tasks: int, size: int, seed: int = 0) -> tuple[Quadratic, Quadratic]:
    draw = torch.Generator().manual_seed(seed)

    def one() -> Quadratic:
        root = torch.randn(tasks, size, size, generator=draw, dtype=torch.float64)
        matrix = root @ root.transpose(1, 2) / size + 0.1 * torch.eye(size, dtype=torch.float64)
        return Quadratic(matrix, torch.randn(tasks, size, generator=draw, dtype=torch.float64))

    return one(), one()


def task_of(kind: str, rows: int, seed: int = 0) -> Task:
    draw = torch.Generator().manual_seed(seed)

    def text() -> str:
        count = int(torch.randint(1, 5, (), generator=draw))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (count,), generator=draw))

    records = [{"text": f"{text()} {i}", "label": ("a", "b", "c")[i % 3]} for i in range(rows)]
    return Task(train=records, test=records[:2], labels=["a", "b", "c"], template=TEMPLATES[kind], text="text")


def folded(kind: str, tasks: int, rows: int, *, dtype=torch.float64, seed: int = 0, budget: int = 200, form="soft"):
    """A model, a shape, starts of all tasks, and losses of drawn rows by (first row, count)."""
    # GPT-2 computes its norms in the model's own dtype; a Llama's are fp32 inside, too coarse for what is tested here.
    lm = load("foreword-tiny", dtype=dtype) if kind == "masked" else frozen("gpt2", dtype)
    shape = Shape(form, 3)
    task = task_of(kind, 3 * tasks * rows, seed)
    form_ = task.format(lm.kind)
    if form == "prefix":
        form_ = task.format(lm.kind, template=form_.template.without_soft().source)
    encoded = Encoder.build(lm, form_).encode_rows(task.train + task.validation)
    draw = torch.Generator().manual_seed(seed + 1)

    def folds(first: int, only: int | None = None) -> list[EpisodeRow]:
        return [
            EpisodeRow(t, encoded[first + t * rows + i], i % 3, 1 / rows)
            for t in range(tasks)
            for i in range(rows)
            if only in (None, t)
        ]

    def loss(some: list[EpisodeRow], texts=None, count: int = tasks) -> PromptLoss:
        return PromptLoss(lm, lm.second_order(), shape, some, count, budget, texts)

    dims = lm.dims
    if form == "soft":
        start = {"embed": torch.randn(tasks, 3, dims.width, generator=draw, dtype=torch.float64).to(dtype)}
    else:
        sizes = (tasks, 2, dims.layers, 3, dims.heads, dims.head_size)
        start = {"pair": torch.randn(sizes, generator=draw, dtype=torch.float64).to(dtype)}
    return lm, folds, loss, start


def random_like(leaves: Mapping[str, Tensor], seed: int = 9) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype) for name, leaf in leaves.items()}


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(sum((one[name] * other[name]).sum() for name in one))
