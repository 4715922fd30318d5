"""One row's way from logits to text: which piece comes next, what text it adds, and where the text ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch

from foreword.core.format import Decoding
from foreword.core.shapes import Float, Int, Tensor

CONTEXT = (
    6  # ids of the text before that its first new piece is decoded with: whether it goes on a word, or follows one
)
COLD = 1e-4  # below it all but the likeliest piece has no chance, and a quotient may be infinite
BROKEN = "\ufffd"  # what a character decodes to of which some bytes are still to come


@final
@dataclass(frozen=True)
class Sampling:
    """How text is continued; the names and meanings are those of OpenAI's completions.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 leave every piece in. `seed` None draws one. Text ends before the
    first of `stop`. `logprobs` asks for that many of the likeliest pieces beside each one.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    @staticmethod
    def of(decoding: Decoding, seed: int) -> "Sampling":
        """What a format's decoding says of one sample; beams are another loop."""
        return Sampling(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature if decoding.do_sample else 0.0,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            seed=seed,
            stop=decoding.stop_strings,
        )


@final
@dataclass(eq=False)
class Chooser:
    """A row's own random numbers, so that what it draws does not depend on who shares its batch."""

    sampling: Sampling
    generator: torch.Generator

    @staticmethod
    def of(sampling: Sampling) -> "Chooser":
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed % 2**63)
        return Chooser(sampling, generator)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < COLD or self.sampling.top_k == 1


def choose(logits_BV: Float[Tensor, "B V"], rows: Sequence[Chooser]) -> Int[Tensor, "B"]:
    """The next piece of each row: the likeliest, or one drawn from what temperature, top-k and top-p leave."""
    chosen_B = logits_BV.argmax(-1)
    drawn = [index for index, row in enumerate(rows) if not row.greedy]
    if not drawn:
        return chosen_B
    at = torch.tensor(drawn, device=logits_BV.device)
    heat_B = torch.tensor([rows[i].sampling.temperature for i in drawn], device=at.device, dtype=logits_BV.dtype)
    scaled_BV = logits_BV[at] / heat_B[:, None]
    narrow = [n for n, i in enumerate(drawn) if rows[i].sampling.top_k > 0 or rows[i].sampling.top_p < 1]
    for n in narrow:
        scaled_BV[n] = narrowed(scaled_BV[n], rows[drawn[n]].sampling)
    sum_BV = scaled_BV.double().softmax(-1).cumsum(-1)
    uniform_B = torch.stack([torch.rand((), dtype=torch.float64, generator=rows[i].generator) for i in drawn])
    # The first piece whose cumulative sum is above the number drawn: never one of probability 0.
    threshold_B1 = uniform_B.to(sum_BV.device)[:, None] * sum_BV[:, -1:]
    found_B = torch.searchsorted(sum_BV, threshold_B1, right=True)[:, 0].clamp(max=sum_BV.shape[1] - 1)
    return chosen_B.index_put((at,), found_B)


def narrowed(logits_V: Float[Tensor, "V"], sampling: Sampling) -> Float[Tensor, "V"]:
    """-inf for all but the `top_k` likeliest, and then for all beyond the first whose probabilities reach `top_p`."""
    if 0 < sampling.top_k < len(logits_V):
        lowest = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < lowest, -torch.inf)
    if sampling.top_p < 1:
        order_V = logits_V.argsort(descending=True, stable=True)
        probability_V = logits_V[order_V].softmax(-1)
        beyond_V = probability_V.cumsum(-1) - probability_V >= sampling.top_p
        beyond_V[0] = False
        logits_V = logits_V.index_fill(0, order_V[beyond_V], -torch.inf)
    return logits_V


@final
@dataclass(eq=False)
class Writer:
    """New ids to text that does not change any more: half characters and what may begin a stop string are held back."""

    tokenizer: Any
    before: Sequence[int]
    stop: tuple[str, ...] = ()
    text: str = ""
    _held: str = ""
    _ids: list[int] = field(default_factory=list)
    _from: int = 0
    _read: int = 0

    def __post_init__(self) -> None:
        self._ids = list(self.before)[-CONTEXT:]
        self._read = len(self._ids)

    def add(self, id: int) -> tuple[str, str, bool]:
        """The piece's own text, the text that is ready with it, and whether a stop string ended it."""
        self._ids.append(id)
        known, whole = self._decode(self._ids[self._from : self._read]), self._decode(self._ids[self._from :])
        if whole.endswith(BROKEN):
            return "", "", False
        new = whole[len(known) :]
        self._from, self._read = self._read, len(self._ids)
        ready, stopped = self._release(new)
        return new, ready, stopped

    def end(self) -> str:
        """What was held back, where the text ends for another reason."""
        known, whole = self._decode(self._ids[self._from : self._read]), self._decode(self._ids[self._from :])
        ready, stopped = self._release(whole[len(known) :])
        if not stopped:
            self.text += self._held
            ready, self._held = ready + self._held, ""
        self._from = self._read = len(self._ids)
        return ready

    def _release(self, new: str) -> tuple[str, bool]:
        self._held += new
        ends = [at for word in self.stop if (at := self._held.find(word)) >= 0]
        if ends:
            ready, self._held = self._held[: min(ends)], ""
            self.text += ready
            return ready, True
        keep = max((n for word in self.stop for n in range(1, len(word)) if self._held.endswith(word[:n])), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += ready
        return ready, False

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
