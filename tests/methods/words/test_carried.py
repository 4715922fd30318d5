"""A model trained here on carried addition is right more often with its steps than without.

Run: python -m pytest tests/methods/words/test_carried.py
"""

import random

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foreword.inference.answers import answer_rows, text_values
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from foreword.tasks.task import Task
from tests.seeds import new_seed

TEMPLATE = "{q}\nA:{answer}"
DIGITS, STEPS = 2, 340  # of the numbers, and of training: about half a minute


def steps_of(a: int, b: int, digits: int) -> str:
    """Column by column from the units, each with the carry of the one before."""
    told, carry = [], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        told.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return " ".join(told)


def problem(a: int, b: int, digits: int) -> dict[str, str]:
    return {
        "q": f"{a:0{digits}d}+{b:0{digits}d}",
        "answer": f"{a + b:0{digits + 1}d}",
        "reasoning": steps_of(a, b, digits),
    }


def trained(pairs: list[tuple[int, int]], digits: int, steps: int, seed: int) -> FrozenLM:
    """A small causal transformer that has seen each of the sums both ways, as often with steps as without."""
    tokenizer = byte_tokenizer("causal")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    rng = random.Random(seed)

    def texts(count: int) -> list[tuple[str, str]]:
        rows = [problem(*rng.choice(pairs), digits) for _ in range(count)]
        return [
            (f"{r['q']}\nA:", f" Go: {r['reasoning']} #### {r['answer']}" if n % 2 else f" {r['answer']}")
            for n, r in enumerate(rows)
        ]

    model.train()
    for _ in range(steps):
        parts = [
            (
                tokenizer(before)["input_ids"],
                [*tokenizer(after, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id],
            )
            for before, after in texts(64)
        ]
        longest = max(len(b) + len(a) for b, a in parts)
        ids = torch.tensor([[*b, *a, *[0] * (longest - len(b) - len(a))] for b, a in parts])
        labels = torch.tensor([[*[-100] * len(b), *a, *[-100] * (longest - len(b) - len(a))] for b, a in parts])
        loss = model(input_ids=ids, attention_mask=(ids > 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return wrap(model.eval(), tokenizer, kind="causal")


@pytest.mark.slow
def test_steps_help_a_model_that_learnt_them():
    digits, seed = DIGITS, new_seed()
    rng = random.Random(seed)
    pairs = list({(rng.randrange(10**digits), rng.randrange(10**digits)) for _ in range(1300)})
    seen, held = pairs[:1000], pairs[1000:1100]
    lm = trained(seen, digits, STEPS, seed)
    train_rows = [problem(a, b, digits) for a, b in seen[:100]]
    test_rows = [{k: v for k, v in problem(a, b, digits).items() if k != "reasoning"} for a, b in held]
    task = Task(train=train_rows, test=test_rows, template=TEMPLATE, metric="number", name="sums").with_(validation=())
    options = {"instruction": "Go:", "conclude": "####", "max_new_tokens": 40}

    def right(method: str, **given) -> np.ndarray:
        made = train(lm, task, method, **given).artefact
        return text_values(task, answer_rows(lm, [(made, task.test)])[0], task.test)

    direct, thought = right("manual"), right("chain-of-thought", **options)
    # Paired on the same rows: one-sided sign test below 1 in 10,000.
    won, lost = int((thought > direct).sum()), int((thought < direct).sum())
    assert won - lost > 3.72 * (won + lost) ** 0.5, (seed, direct.mean(), thought.mean())
    assert thought.mean() > 0.5, seed
