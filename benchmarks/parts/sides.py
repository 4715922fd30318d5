"""The two sides of a comparison: Foreword's own loop, and the loop that a user of PEFT writes.

Both get the same pieces in the same order, the same start, optimiser and loss: cross entropy between the label words.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import peft
import torch
from torch.nn.functional import cross_entropy

from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.inference.batched import batches_of
from foreword.inference.scoring import encode_rows
from foreword.methods import METHODS
from foreword.methods.registry import make_job
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.tasks.task import Task
from foreword.training.contract import GradientMethod, Learner
from foreword.training.loop import ExampleRows, Run, batch_rows

Method = Literal["prompt", "prefix", "prefix-mlp"]
Padding = Literal["examples", "buckets"]
FIXED = 64  # the length to which PEFT's causal guide and notebooks pad every row
LENGTH = 20
HIDDEN = 512
RATES = {"prompt": 0.01, "prefix": 0.01, "prefix-mlp": 3e-4}


def our_run(lm: FrozenLM, task: Task, method: Method, *, steps: int, batch_size: int, length: int = LENGTH) -> Run:
    """A learner as `train` starts it, whose reparametrisation is the bare network (Foreword adds a start to it)."""
    name = "prompt-tuning" if method == "prompt" else "prefix-tuning"
    options: dict[str, Any] = {
        "length": length, "steps": steps, "batch_size": batch_size, "learning_rate": RATES[method], "clip": 0,
        "keep": "last",
    }  # fmt: skip
    if method == "prefix-mlp":
        options |= {"reparametrise": True, "hidden": HIDDEN}
    form = task.format(lm.kind)
    if method == "prompt":
        # PEFT puts its vectors before the row's first token, so ours stand there too.
        form = dataclasses.replace(form, template=form.template.with_soft(length), soft_first=True)
    form = dataclasses.replace(form, max_length=length + FIXED)
    job = make_job(lm, task, name, options=options, form=form)
    starter = METHODS[name]
    assert isinstance(starter, GradientMethod), "both methods have a gradient"
    learner = starter.start(lm, job)
    if method == "prefix-mlp":
        learner = _bare(learner)
    encoded = encode_rows(lm, learner.format, task.train, 0 if method == "prompt" else length)
    labels = [row.label for row in task.train if row.label is not None]
    return Run(f"{method}", learner, ExampleRows(encoded, labels), ExampleRows([], []), seed=0)


def _bare(learner: Learner) -> Learner:
    """The network's output layer gets numbers, and the activations that it would be added to are taken off again."""
    with torch.no_grad():
        start = learner.build(learner.leaves)
        assert isinstance(start, PrefixPrompt), "prefix-tuning builds prefixes"
        offset = [t.detach().clone() for t in start.sites["self"]]
        draw = torch.Generator().manual_seed(1)
        for name in ("up.weight", "up.bias"):
            leaf = learner.leaves[name]
            leaf.copy_((torch.rand(leaf.shape, generator=draw) - 0.5) / 10)

    def build(leaves: Any) -> Learnt:
        made = learner.build(leaves)
        assert isinstance(made, PrefixPrompt), "prefix-tuning builds prefixes"
        keys, values = (t - o for t, o in zip(made.sites["self"], offset, strict=True))
        return PrefixPrompt({"self": (keys, values)}, made.start)

    return dataclasses.replace(learner, build=build)


class Theirs:
    """PEFT's newest release around the same weights, starting from the same numbers as `run`."""

    def __init__(self, model: Any, run: Run, method: Method, padding: Padding, budget: int):
        self.run, self.method, self.padding, self.budget = run, method, padding, budget
        self.kind = "causal" if model.config.model_type == "gpt2" else "masked"
        self.length = run.learner.config.length  # pyright: ignore[reportAttributeAccessIssue]
        task_type = "CAUSAL_LM" if self.kind == "causal" else "FEATURE_EXTRACTION"
        shared = {"task_type": task_type, "num_virtual_tokens": self.length}
        if method == "prompt":
            config: Any = peft.PromptTuningConfig(**shared)
        else:
            mlp = {"prefix_projection": True, "encoder_hidden_size": HIDDEN} if method == "prefix-mlp" else {}
            config = peft.PrefixTuningConfig(**shared, **mlp)
        self.model: Any = peft.get_peft_model(model, config)
        self.model.eval()  # no dropout; gradients flow as in training
        self.device = model.device
        with torch.no_grad():
            self._start(run.learner.leaves)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=RATES[method], weight_decay=0.0)

    def _start(self, leaves: Any) -> None:
        encoder = self.model.prompt_encoder["default"]
        if self.method == "prompt":
            encoder.embedding.weight.copy_(leaves["embed"])
        elif self.method == "prefix":
            # PEFT's columns of a position: layer, then key or value, then head, then number.
            encoder.embedding.weight.copy_(leaves["pair"].permute(2, 1, 0, 3, 4).reshape(self.length, -1))
        else:
            down, up = encoder.transform[0], encoder.transform[2]
            encoder.embedding.weight.copy_(leaves["table"])
            down.weight.copy_(leaves["down.weight"])
            down.bias.copy_(leaves["down.bias"])
            layers = self.model.config.num_hidden_layers
            for theirs, ours in ((up.weight, leaves["up.weight"]), (up.bias, leaves["up.bias"])):
                theirs.copy_(ours.unflatten(0, (2, layers, -1)).transpose(0, 1).flatten(0, 2))

    def step(self, number: int) -> float:
        """One optimiser step over the rows of step `number`; the mean loss."""
        rows = batch_rows(self.run, number)
        encoded = [self.run.train.encoded[i] for i in rows]
        label = [self.run.train.label_N[i] for i in rows]
        passes = [list(range(len(rows)))] if self.padding == "examples" else batches_of(encoded, self.budget)
        total = 0.0
        self.optimizer.zero_grad()
        for chosen in passes:
            logits_BC = self.scores([encoded[i] for i in chosen])
            target_B = torch.tensor([label[i] for i in chosen], device=self.device)
            loss = cross_entropy(logits_BC, target_B, reduction="sum") / len(rows)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return total

    def scores(self, encoded: Sequence[Encoded]) -> Tensor:
        """(B, labels): the library's logits at the answer's place, of the label words alone."""
        texts = [e.ids_S[e.slot_S < 0] for e in encoded]
        longest = max(map(len, texts))
        if self.padding == "examples" and self.kind == "causal":
            longest = FIXED
        ids_BS = torch.zeros(len(texts), longest, dtype=torch.long)
        attend_BS = torch.zeros_like(ids_BS)
        for b, text in enumerate(texts):
            ids_BS[b, : len(text)] = torch.from_numpy(text)
            attend_BS[b, : len(text)] = 1
        out = self.model(input_ids=ids_BS.to(self.device), attention_mask=attend_BS.to(self.device))
        # Ours count the slots; logits of a prefix do not.
        read_B = torch.tensor([e.answer for e in encoded], device=self.device)
        plan = encoded[0].plan
        assert plan is not None, "every row has label words"
        words = torch.tensor([label[0][0] for label in plan.words], device=self.device)
        row_B = torch.arange(len(texts), device=self.device)
        return out.logits[row_B, read_B][:, words].float()


def in_turn(
    fit: Callable[..., None], lm: FrozenLM, run: Run, theirs: Theirs, clock: Callable[[], float]
) -> list[tuple[float, float, float, float]]:
    """Train both sides step by step, ours first: (our seconds, their seconds, our loss, their loss) of every step."""
    steps: list[tuple[float, float, float, float]] = []
    mark = [clock()]

    def after_step(_: int) -> None:
        ours = clock() - mark[0]
        began = clock()
        loss = theirs.step(run.step - 1)
        steps.append((ours, clock() - began, run.loss, loss))
        mark[0] = clock()

    fit(lm, [run], after_step=after_step)
    return steps
