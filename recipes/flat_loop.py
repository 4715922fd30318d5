"""Prompt tuning in one flat loop, to read: no class, and of Foreword only a task and weights. Expect 0.71.

    python recipes/flat_loop.py

`foreword.train(lm, task, "prompt-tuning")` does the same for many prompts at once, any template and any family, and
keeps the best step instead of the last; a test holds the two to the same numbers.
"""

import argparse
import random

import torch
from transformers import AutoTokenizer, BertForMaskedLM

from foreword.models.hf.loading import EMBEDDED
from foreword.tasks.read import read_task


def put(tokenizer, texts, length):
    """Rows `[CLS] <length soft slots> text It was [MASK]. [SEP]`, padded on the right."""
    rows = []
    for text in texts:
        ids = tokenizer(f"{text} It was [MASK].", truncation=True, max_length=512 - length)["input_ids"]
        rows.append([ids[0]] + [tokenizer.pad_token_id] * length + ids[1:])
    longest = max(map(len, rows))
    ids_BS = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    attend_BS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids_BS, attend_BS


def label_logits(model, tokenizer, prompt_PD, texts, words):
    """Logits of the label words at the mask, (B, C): the only rows of the output matrix that are needed."""
    length = len(prompt_PD)
    ids_BS, attend_BS = put(tokenizer, texts, length)
    embed_BSD = model.bert.embeddings.word_embeddings(ids_BS)
    embed_BSD = torch.cat(
        [embed_BSD[:, :1], prompt_PD.expand(len(texts), -1, -1), embed_BSD[:, 1 + length :]], dim=1
    )  # the slots stand after [CLS]
    hidden_BSD = model.bert(inputs_embeds=embed_BSD, attention_mask=attend_BS).last_hidden_state
    hidden_BD = hidden_BSD[ids_BS == tokenizer.mask_token_id]
    head = model.cls.predictions
    word_ids = tokenizer.convert_tokens_to_ids(words)
    return head.transform(hidden_BD) @ head.decoder.weight[word_ids].T + head.decoder.bias[word_ids]


def learn(model, tokenizer, prompt_PD, batches, words, learning_rate=0.01):
    """One AdamW step a batch of (texts, labels); the model's weights never move."""
    model.requires_grad_(False).eval()
    prompt_PD = prompt_PD.clone().requires_grad_()
    optimizer = torch.optim.AdamW([prompt_PD], lr=learning_rate, weight_decay=0.0)
    for step, (texts, labels) in enumerate(batches):
        logits_BC = label_logits(model, tokenizer, prompt_PD, texts, words)
        loss = torch.nn.functional.cross_entropy(logits_BC, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([prompt_PD], 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    return prompt_PD.detach()


def main(arguments=None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--test-rows", type=int, default=500)
    given = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    model = BertForMaskedLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    task = read_task("builtin:sentiment")
    words = ["terrible", "wonderful"]  # in the order of task.labels
    rng = random.Random(0)
    start = tokenizer.convert_tokens_to_ids(words) + rng.sample(range(1996, 6000), given.length - len(words))
    prompt_PD = model.bert.embeddings.word_embeddings.weight[start].detach()
    drawn = [rng.sample(task.train, 32) for _ in range(given.steps)]
    batches = [([row.fields["text"] for row in rows], [row.label for row in rows]) for rows in drawn]
    prompt_PD = learn(model, tokenizer, prompt_PD, batches, words)
    right = 0
    test = task.test[: given.test_rows]
    for at in range(0, len(test), 16):
        rows = test[at : at + 16]
        with torch.no_grad():
            logits_BC = label_logits(model, tokenizer, prompt_PD, [row.fields["text"] for row in rows], words)
        right += sum(guess == row.label for guess, row in zip(logits_BC.argmax(1).tolist(), rows, strict=True))
    print(f"{task.labels}: {right / len(test):.3f} of {len(test)} test rows of a synthetic task")
    return right / len(test)


if __name__ == "__main__":
    main()
