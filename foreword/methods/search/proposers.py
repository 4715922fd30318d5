"""Who proposes words: a model that writes (here or behind an endpoint), or a masked model that fills gaps."""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch

from foreword.core.format import Format
from foreword.core.shapes import Tensor
from foreword.core.template import Template
from foreword.errors import DataError
from foreword.methods.search.ledger import Ledger, key_of
from foreword.methods.search.remote import Remote
from foreword.methods.search.vocabulary import piece_logprobs
from foreword.models.base import FrozenLM
from foreword.models.encode import Encoder, collate, prepare
from foreword.models.pieces import Pieces
from foreword.models.rendering import frozen


@final
@dataclass(frozen=True)
class Sampling:
    """How proposals are sampled."""

    temperature: float
    top_p: float
    max_tokens: int


class Writer(ABC):
    """Continues a prompt, or answers it."""

    @abstractmethod
    def fits(self, prompt: str) -> bool:
        """Whether the prompt leaves room for an answer."""

    @abstractmethod
    def write(self, prompt: str, count: int, seed: int) -> list[str]:
        """So many answers, each sampled; the same for the same seed. Raises: BudgetSpentError (remote)."""


@final
class LocalWriter(Writer):
    """A causal model on this machine. `who` tells it from other models in the ledger."""

    def __init__(self, lm: FrozenLM, how: Sampling, ledger: Ledger, who: str) -> None:
        self._lm, self._how, self._ledger, self._who = lm, how, ledger, who
        source = [{"role": "user", "content": "{prompt}"}] if lm.instructed else "{prompt}"
        room = max(1, lm.dims.context - how.max_tokens)
        form = Format(Template.parse(source), truncate="error", max_length=room)
        self._encoder = Encoder.build(lm, frozen(lm.tokenizer, form))

    def fits(self, prompt: str) -> bool:
        try:
            self._encoder.encode({"prompt": prompt})
        except DataError:
            return False
        return True

    def write(self, prompt: str, count: int, seed: int) -> list[str]:
        how = self._how
        key = key_of("write", self._who, prompt, count, seed, how.temperature, how.top_p, how.max_tokens)
        found = self._ledger.get(key)
        if found is None:
            found = self._generate(prompt, count, seed)
            self._ledger.put({key: found})
        return list(found)

    @torch.no_grad()
    def _generate(self, prompt: str, count: int, seed: int) -> list[str]:
        lm, how = self._lm, self._how
        batch = collate([self._encoder.encode({"prompt": prompt})])
        inputs, _ = prepare(lm, batch, None, torch.zeros(1, dtype=torch.long))
        devices = [lm.device] if lm.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            ids_XL = lm.generate(
                inputs,
                do_sample=True,
                temperature=how.temperature,
                top_p=how.top_p,
                top_k=0,
                max_new_tokens=how.max_tokens,
                num_return_sequences=count,
            )
        return lm.tokenizer.batch_decode(ids_XL, skip_special_tokens=True)


@final
class RemoteWriter(Writer):
    """An endpoint; one call a text."""

    def __init__(self, remote: Remote, how: Sampling) -> None:
        self._remote, self._how = remote, how

    def fits(self, prompt: str) -> bool:
        return True

    def write(self, prompt: str, count: int, seed: int) -> list[str]:
        how = self._how
        return [
            self._remote.write(
                prompt, seed + n, max_tokens=how.max_tokens, temperature=how.temperature, top_p=how.top_p
            )
            for n in range(count)
        ]


@final
class Filler:
    """A masked model that fills gaps, one piece after the other, each sampled."""

    def __init__(self, lm: FrozenLM, how: Sampling, ledger: Ledger, who: str) -> None:
        self._lm, self._how, self._ledger, self._who = lm, how, ledger, who
        self._pieces = Pieces.of(lm.tokenizer, "masked")
        self._mask = int(lm.tokenizer.mask_token_id)

    def insert(self, before: str, after: str, length: int, count: int, seed: int) -> list[str]:
        """Words of `length` pieces between two texts; `after` is cut where the model's context ends."""
        key = key_of("insert", self._who, before, after, length, count, seed, self._how.temperature)
        found = self._ledger.get(key)
        if found is None:
            head = [*self._pieces.before, *self._pieces.start([before])[0]]
            room = self._lm.dims.context - len(head) - length - len(self._pieces.after_row)
            tail = [*self._pieces.following([after])[0][: max(0, room)], *self._pieces.after_row]
            gap = list(range(len(head), len(head) + length))
            rows = [[*head, *[self._mask] * length, *tail] for _ in range(count)]
            filled = self._fill(rows, [gap] * count, seed)
            found = [self._text(row[len(head) : len(head) + length]) for row in filled]
            self._ledger.put({key: found})
        return list(found)

    def resample(self, text: str, count: int, seed: int, share: float = 0.3) -> list[str]:
        """The text with a share of its pieces drawn again, a different choice of pieces each time."""
        key = key_of("resample", self._who, text, count, seed, share, self._how.temperature)
        found = self._ledger.get(key)
        if found is None:
            ids = self._pieces.start([text])[0][: self._lm.dims.context - 4]
            head, tail = [*self._pieces.before], [*self._pieces.after_row]
            rng = random.Random(seed)
            masks = max(1, round(share * len(ids)))
            rows, gaps = [], []
            for _ in range(count):
                gap = rng.sample(range(len(ids)), masks)
                rows.append([*head, *(self._mask if i in gap else piece for i, piece in enumerate(ids)), *tail])
                gaps.append([len(head) + i for i in gap])
            filled = self._fill(rows, gaps, seed)
            found = [self._text(row[len(head) : len(head) + len(ids)]) for row in filled]
            self._ledger.put({key: found})
        return list(found)

    def _fill(self, rows: list[list[int]], gaps: list[list[int]], seed: int) -> list[list[int]]:
        """Each row's gaps filled in their order."""
        generator = torch.Generator().manual_seed(seed)
        for step in range(len(gaps[0])):
            at = [gap[step] for gap in gaps]
            logp_BV = piece_logprobs(self._lm, rows, at)
            for row, column, logp_V in zip(rows, at, logp_BV, strict=True):
                row[column] = _drawn(logp_V, self._how, generator)
        return rows

    def _text(self, ids: list[int]) -> str:
        return self._lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _drawn(logp_V: Tensor, how: Sampling, generator: torch.Generator) -> int:
    """A piece from the likeliest that have `top_p` together (Holtzman et al. 2020)."""
    p_V, order_V = (logp_V / how.temperature).softmax(-1).sort(descending=True)
    kept_V = p_V.cumsum(0) - p_V < how.top_p
    return int(order_V[torch.multinomial(p_V * kept_V, 1, generator=generator)])
