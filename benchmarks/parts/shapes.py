"""Models of published shapes with random weights, and the rows they are trained on. Nothing is downloaded."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from foreword.models.base import FrozenLM
from foreword.models.hf.loading import EMBEDDED
from foreword.models.load import wrap
from foreword.tasks.task import Task

# Pieces a sentence of SST-2's training split has with the embedded tokenizer: (at most this many, share of sentences).
LENGTHS = (
    (5, 0.018), (10, 0.093), (15, 0.140), (20, 0.166), (25, 0.168), (30, 0.145), (35, 0.113), (40, 0.073), (45, 0.044),
    (50, 0.022), (55, 0.013), (60, 0.005),
)  # fmt: skip
WORDS = "film story plot actor scene music joke idea hour line world life work moment script screen".split()
TEMPLATE = {"masked": "{text|shorten} It was {mask}.", "causal": "{text|shorten} It was {mask}"}
LABEL_WORDS = {"negative": "terrible", "positive": "wonderful"}


@dataclass(frozen=True)
class Shape:
    """`layers`, `width`, `heads` and `vocab` of a GPT-2 or BERT configuration, whose weights have deviation `spread`.

    Small models get larger weights: with published ones a prompt would hardly move their losses, and a gate that
    compares losses would let anything pass.
    """

    family: str
    layers: int = 12
    width: int = 768
    heads: int = 12
    vocab: int = 50257
    spread: float = 0.02

    @property
    def kind(self) -> str:
        return "causal" if self.family == "gpt2" else "masked"


FULL = {"gpt2": Shape("gpt2"), "bert": Shape("bert", vocab=30522)}
GATE = {name: Shape(name, layers=4, width=256, heads=4, vocab=30522, spread=0.05) for name in FULL}
SMOKE = {name: Shape(name, layers=2, width=32, heads=2, vocab=30522, spread=0.3) for name in FULL}


def build(shape: Shape, dtype: torch.dtype, device: str) -> Any:
    """A random model of this shape without dropout; the same weights every time."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    if shape.family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=shape.vocab, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
            initializer_range=shape.spread, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ends,
        )  # fmt: skip
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, intermediate_size=4 * shape.width,
            initializer_range=shape.spread, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **ends,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
    return model.to(device=device, dtype=dtype).requires_grad_(False).eval()


def wrapped(model: Any) -> FrozenLM:
    """The model behind Foreword's contract, with the embedded tokenizer (30,522 pieces, in range for both families)."""
    return wrap(model, transformers.AutoTokenizer.from_pretrained(EMBEDDED))


def sentences(file: Path | None, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows with the fields text and label: drawn from an SST-2 file, or made up with SST-2's lengths."""
    rng = random.Random(seed)
    if file is not None and file.exists():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = rng.sample(rows, min(count, len(rows)))
        return [{"text": row["text"], "label": row["label"]} for row in rows]
    tops, shares = zip(*LENGTHS, strict=True)
    made = []
    for number in range(count):
        top = rng.choices(tops, shares)[0]
        text = " ".join(rng.choices(WORDS, k=rng.randint(max(1, top - 4), top)))
        made.append({"text": text, "label": ("negative", "positive")[number % 2]})
    return made


def task_of(rows: list[dict[str, str]], name: str = "sst2") -> Task:
    """All rows are for training; nothing is evaluated while a benchmark runs."""
    task = Task(
        train=rows, test=rows[:2], text="text", name=name, template=TEMPLATE, label_words=LABEL_WORDS,
        labels=list(LABEL_WORDS),
    )  # fmt: skip
    return task.with_(train=tuple(task.train) + tuple(task.validation), validation=())
