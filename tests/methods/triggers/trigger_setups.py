"""Tiny models over words, for searches whose every prompt can be enumerated, and one in which a key word is planted."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from foreword.methods.registry import make_job
from foreword.methods.triggers.beam_search import SearchPlan
from foreword.methods.triggers.search_space import SearchSpace, make_field
from foreword.models.base import FrozenLM, Kind
from foreword.models.hf.loading import wrap
from foreword.models.hf.tiny_checkpoints import random_model
from foreword.tasks.task import Task

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEMPLATE = {"masked": "{text} so then {mask} .", "causal": "{text} so then {answer}"}


def word_tokenizer(kind: Kind, words: int) -> PreTrainedTokenizerFast:
    """One token a word: w0, w1, ... and a few real ones."""
    names = [*SPECIAL, ".", "a", "so", "then", "yes", "no", *(f"w{i}" for i in range(words))]
    vocab = {name: at for at, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    first, last = ("[CLS]", "[SEP]") if kind == "masked" else ("[CLS]", "")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(), special_tokens=[(t, vocab[t]) for t in (first, last) if t]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def word_lm(
    kind: Kind, words: int, *, seed: int = 0, width: int = 16, dtype: torch.dtype = torch.float64
) -> tuple[FrozenLM, Any]:
    """A random model over words, and the Hugging Face model inside."""
    tokenizer = word_tokenizer(kind, words)
    model = (random_model if kind == "masked" else _gpt2)(kind, tokenizer, seed, width, 2, 64).to(dtype).eval()
    return wrap(model, tokenizer, kind, f"words-{kind}"), model


def _gpt2(kind: Kind, tokenizer: Any, seed: int, width: int, layers: int, context: int) -> Any:
    """A family of LayerNorm, which keeps its numbers in fp64 (Llama's own norm does not)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_embd=width, n_layer=layers, n_head=4, n_positions=context,
                initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=2, eos_token_id=3,
            )
        ).eval()  # fmt: skip


def word_task(words: int, seed: int, *, rows: int = 6, length: int = 3, test: int = 4) -> Task:
    """Texts of words drawn by chance, of several lengths, with labels drawn by chance."""
    rng = random.Random(seed)

    def some(count: int) -> list[dict[str, str]]:
        return [
            {"text": " ".join(f"w{rng.randrange(words)}" for _ in range(1 + n % length)), "label": ("yes", "no")[n % 2]}
            for n in range(count)
        ]

    return Task(train=some(rows), validation=some(4), test=some(test), name=f"words-{seed}", template=TEMPLATE)


def field_of(lm: FrozenLM, task: Task, seed: int = 0, **options: Any) -> SearchSpace:
    """The field of an AutoPrompt job."""
    job = make_job(lm, task, "autoprompt", options={"length": 2, "pool_rows": 64, **options}, seed=seed)
    return make_field(lm, job, job.config)


def plan(**changes: Any) -> SearchPlan:
    usual: dict[str, Any] = {
        "steps": 30, "candidates": 16, "beam": 1, "patience": 3, "restarts": 0, "swaps": 1, "fluency": 0.0,
        "verify": "race",
    }  # fmt: skip
    return SearchPlan(**{**usual, **changes})


@dataclass(frozen=True, eq=False)
class Planted:
    """A model that answers by a row's first word if the key word stands before the answer, and by chance if not."""

    lm: FrozenLM
    task: Task
    key: int


def planted_key(kind: Kind, seed: int, *, words: int = 600, steps: int = 1500) -> Planted:
    """Train the model until it answers by the key and not without it; the key and each answer's words are drawn."""
    rng = random.Random(seed)
    lm, model = word_lm(kind, words, seed=seed, width=32, dtype=torch.float32)
    tokenizer = lm.tokenizer
    index = {name: tokenizer.convert_tokens_to_ids(name) for name in ("yes", "no", ".", "[CLS]", "[SEP]", "[MASK]")}
    first = tokenizer.convert_tokens_to_ids("w0")
    key = first + rng.randrange(words // 2, words)
    said = rng.sample(range(40), 40)  # the words that rows begin with, half of them for each answer
    ids = {"yes": index["yes"], "no": index["no"]}

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        columns, labels, own, keyed = [], [], [], []
        for _ in range(size):
            word = rng.randrange(40)
            triggers = [first + rng.randrange(words) for _ in range(2)]
            if rng.random() < 0.5:
                triggers[rng.randrange(2)] = key
            known = key in triggers
            own.append(ids["yes" if said[word] < 20 else "no"])
            labels.append(own[-1] if known else ids[("yes", "no")[rng.randrange(2)]])
            keyed.append(known)
            row = [index["[CLS]"], first + word, first + rng.randrange(40), *triggers]
            columns.append(row + ([index["[MASK]"], index["."], index["[SEP]"]] if kind == "masked" else []))
        return torch.tensor(columns), torch.tensor(labels), torch.tensor(own), torch.tensor(keyed)

    model.requires_grad_(True).train(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    at, right, without = 5 if kind == "masked" else 4, 0.0, 1.0
    for _ in range(steps):
        ids_BS, label_B, own_B, keyed_B = batch(64)
        logits_BV = model(input_ids=ids_BS).logits[:, at]
        loss = cross_entropy(logits_BV, label_B)
        said_B = (logits_BV.argmax(1) == own_B).float()
        right = 0.95 * right + 0.05 * float(said_B[keyed_B].mean())
        without = 0.95 * without + 0.05 * float(said_B[~keyed_B].mean())
        if right > 0.97 and without < 0.7:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    model.set_attn_implementation("eager")
    own = wrap(model, tokenizer, kind, f"planted-{kind}")

    def rows(count: int) -> list[dict[str, str]]:
        found = []
        for _ in range(count):
            word = rng.randrange(40)
            label = "yes" if said[word] < 20 else "no"
            found.append({"text": f"w{word} w{rng.randrange(40)}", "label": label})
        return found

    task = Task(
        train=rows(32), validation=rows(24), test=rows(48), name="key", labels=["yes", "no"],
        template={"masked": "{text} so then {mask} .", "causal": "{text} so then {answer}"},
    )  # fmt: skip
    return Planted(own, task, key)
