"""The text of the embedded model: a corpus as one array of pieces, and the rows of every step out of it."""

import hashlib
import json
import lzma
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from foreword.core.files import write_whole
from foreword.core.shapes import Int, Tensor
from foreword.errors import ConfigError
from foreword.models.hf.loading import EMBEDDED

PAD, CLS, SEP, MASK = 0, 101, 102, 103  # of BERT's word pieces
BEGINS = 1 << 15  # the bit of a piece that begins a sentence or a line; pieces need only 15 bits
SENTENCE = re.compile(r"(?:(?<=[.?!])|(?<=[.?!][\"')]))\s+(?=[\"'(]?[A-Z0-9])|\s*\n\s*")
PARTS = (6, 3, 3, 2, 2)  # of 16 parts of every step: rows as long as the context, half as long, a quarter, ...
MASKED = 0.2
ALIGNED = 0.75  # rows that begin where a sentence does
WHOLE, CUT = 0.5, 0.25  # masked rows with [SEP] after a whole sentence, and in the middle; the rest have none


def sentences(corpus: Path) -> Iterator[list[str]]:
    """The sentences and lines of each document of a JSON Lines file, xz or plain."""
    with lzma.open(corpus, "rt") if corpus.suffix == ".xz" else corpus.open() as file:
        for line in file:
            if found := [s for s in SENTENCE.split(json.loads(line)["text"]) if s.strip()]:
                yield found


def stream_of(corpus: Path, folder: Path) -> np.ndarray:
    """The corpus as uint16 pieces, every document followed by [SEP]; tokenised once, into the folder.

    Raises: ConfigError where there is no text.
    """
    if not corpus.exists():
        raise ConfigError(f"There is no corpus {corpus}; give a file of JSON Lines with a field `text`.")
    file = folder / f"{corpus.name.split('.')[0]}-{sha256(corpus)[:12]}.u16"
    if not file.exists():
        print(f"tokenising {corpus} into {file}", file=sys.stderr)
        write_whole(file, b"".join(_pieces(sentences(corpus))))
    return np.memmap(file, np.uint16, "r")


def _pieces(documents: Iterable[list[str]]) -> Iterator[bytes]:
    """Piece by piece as a document would be tokenised whole: the tokenizer never joins what white space parts."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    options |= {"return_attention_mask": False, "return_token_type_ids": False}
    rest = iter(documents)
    while some := list(islice(rest, 500)):
        found = iter(tokenizer([sentence for document in some for sentence in document], **options)["input_ids"])
        for document in some:
            for ids in islice(found, len(document)):
                if ids:
                    yield np.array([ids[0] | BEGINS, *ids[1:]], np.uint16).tobytes()
            yield np.array([SEP], np.uint16).tobytes()


@dataclass(frozen=True)
class Plan:
    """What fixes every batch. `tokens` a step are a multiple of 16 contexts."""

    seed: int
    context: int
    tokens: int

    @property
    def chunks(self) -> int:
        return self.tokens // self.context

    def steps_a_pass(self, size: int) -> int:
        return (size // self.context - 2) // self.chunks


@dataclass(frozen=True)
class Batch:
    """Rows of one length, and the positions `place_N` of the flattened rows at which `target_N` are predicted."""

    ids_BS: Int[Tensor, "B S"]
    place_N: Int[Tensor, "N"]
    target_N: Int[Tensor, "N"]
    causal: bool


@lru_cache(maxsize=1)
def _order(plan: Plan, size: int, passed: int) -> np.ndarray:
    """Where the chunks of one pass begin: all of them once, in a random order, moved by a random shift."""
    rng = np.random.default_rng([plan.seed, passed])
    return rng.integers(plan.context) + plan.context * rng.permutation(plan.steps_a_pass(size) * plan.chunks)


def batches_of(plan: Plan, stream: np.ndarray, step: int, pieces: int = 2048) -> list[Batch]:
    """The batches of one step, of one length and at most so many pieces each: masked in even steps, causal in odd."""
    passed, at = divmod(step, plan.steps_a_pass(len(stream)))
    chunks = _order(plan, len(stream), passed)[at * plan.chunks :][: plan.chunks]
    rng = np.random.default_rng([plan.seed, step, 1])
    causal, batches, used = step % 2 == 1, [], 0
    for halvings, parts in enumerate(PARTS):
        own = chunks[used : used + parts * plan.chunks // 16]
        used += len(own)
        length = plan.context >> halvings
        begins = (own[:, None] + np.arange(0, plan.context, length)).flatten()
        ids_BS = np.stack([row_of(stream, int(at), length, causal, rng) for at in begins])
        # The same rows and masks, however many go together.
        for some_BS in np.array_split(ids_BS, -(-ids_BS.size // pieces)):
            batches.append(causal_batch(some_BS) if causal else masked_batch(some_BS, rng))
    return batches


def row_of(stream: np.ndarray, at: int, length: int, causal: bool, rng: np.random.Generator) -> np.ndarray:
    """`[CLS] text`, as Foreword puts causal rows; masked rows mostly get their [SEP], after a whole sentence or not."""
    start, end = rng.random(2)
    if start < ALIGNED:
        back = np.flatnonzero(stream[max(0, at - length) : at + 1][::-1] & BEGINS)
        at -= int(back[0]) if len(back) else 0
    at += stream[at] == SEP
    text = stream[at : at + length - 1]
    row = np.full(length, PAD, np.int64)
    row[0], row[1:] = CLS, text & ~np.uint16(BEGINS)
    if not causal and end < WHOLE + CUT:
        begins = np.flatnonzero(text & BEGINS)
        cut = 1 + int(begins[-1]) if end < WHOLE and len(begins) and begins[-1] > 0 else length - 1
        row[cut:] = PAD
        if row[cut - 1] != SEP:
            row[cut] = SEP
    return row


def masked_batch(ids_BS: np.ndarray, rng: np.random.Generator) -> Batch:
    """A fifth of the pieces become [MASK] and are to be found again, never [CLS], [SEP] or padding."""
    hidden_BS = (rng.random(ids_BS.shape) < MASKED) & ~np.isin(ids_BS, (PAD, CLS, SEP))
    place_N = np.flatnonzero(hidden_BS)
    given_BS = np.where(hidden_BS, MASK, ids_BS)
    return Batch(*map(torch.from_numpy, (given_BS, place_N, ids_BS.flatten()[place_N])), causal=False)


def causal_batch(ids_BS: np.ndarray) -> Batch:
    """Every position but the last predicts the next piece."""
    place_BS = np.arange(ids_BS.size).reshape(ids_BS.shape)[:, :-1]
    return Batch(*map(torch.from_numpy, (ids_BS, place_BS.flatten(), ids_BS[:, 1:].flatten())), causal=True)


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
