"""Turn the logits of one row into text: choose the next piece, decode the text it adds, and find where the text
ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch

from foreword.core.format import Decoding
from foreword.core.shapes import Bool, Float, Int, Tensor

CONTEXT = (
    6  # ids of the text before that its first new piece is decoded with: whether it goes on a word, or follows one
)
COLD = 1e-4  # below it all but the likeliest piece has no chance, and a quotient may be infinite
# Bins of logits in which a nucleus is looked for; all that is e^40 less likely than the best shares the last.
BINS, DEPTH = 4096, 40.0
BROKEN = "\ufffd"  # what a character decodes to of which some bytes are still to come


@final
@dataclass(frozen=True)
class Sampling:
    """Describe how text is continued; the names and meanings are those of OpenAI's completions.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every piece. `seed` None draws a seed. Text ends before the
    first of the `stop` strings. `logprobs` asks for that many of the likeliest pieces beside each chosen one.
    `min_tokens`, `repetition_penalty` (Keskar et al. 2019) and `no_repeat_ngram_size` (0: none) consider only the text
    that was written.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @staticmethod
    def of(decoding: Decoding, seed: int) -> "Sampling":
        """Return the options that a format's decoding sets for one sample; beams have another loop."""
        return Sampling(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature if decoding.do_sample else 0.0,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            seed=seed,
            stop=decoding.stop_strings,
            min_tokens=decoding.min_new_tokens,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        )

    @property
    def looks_back(self) -> bool:
        """Return whether the choice of the next piece depends on the pieces written before."""
        return self.min_tokens > 0 or self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0


@final
@dataclass(eq=False)
class Chooser:
    """Hold the pieces that a row has written, and its random numbers, so that its draws do not depend on the other rows
    of its batch.

    The text has ended after one of `ends`.
    """

    sampling: Sampling
    generator: torch.Generator
    ends: frozenset[int] = frozenset()
    written: list[int] = field(default_factory=list)

    @staticmethod
    def of(sampling: Sampling, ends: frozenset[int] = frozenset()) -> "Chooser":
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed % 2**63)
        return Chooser(sampling, generator, ends)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < COLD or self.sampling.top_k == 1


def choose(logits_BV: Float[Tensor, "B V"], rows: Sequence[Chooser]) -> Int[Tensor, "B"]:
    """Return the next piece of each row: the likeliest, or one drawn from what temperature, top-k and top-p leave."""
    back = [index for index, row in enumerate(rows) if row.sampling.looks_back]
    if back:
        logits_BV = logits_BV.clone()
        for index in back:
            row = rows[index]
            logits_BV[index] = looking_back(logits_BV[index], row.sampling, row.written, row.ends)
    chosen_B = _chosen(logits_BV, rows)
    for index in back:
        rows[index].written.append(int(chosen_B[index]))
    return chosen_B


def _chosen(logits_BV: Float[Tensor, "B V"], rows: Sequence[Chooser]) -> Int[Tensor, "B"]:
    chosen_B = logits_BV.argmax(-1)
    drawn = [index for index, row in enumerate(rows) if not row.greedy]
    if not drawn:
        return chosen_B
    at = torch.tensor(drawn, device=logits_BV.device)
    heat_B = torch.tensor([rows[i].sampling.temperature for i in drawn], device=at.device, dtype=logits_BV.dtype)
    scaled_BV = logits_BV[at] / heat_B[:, None]
    probability_BV = scaled_BV.double().softmax(-1)
    narrow = [n for n, i in enumerate(drawn) if rows[i].sampling.top_k > 0 or rows[i].sampling.top_p < 1]
    for n in narrow:
        kept_V = _remaining(scaled_BV[n], probability_BV[n], rows[drawn[n]].sampling)
        probability_BV[n].masked_fill_(~kept_V, 0.0)
    sum_BV = probability_BV.cumsum(-1)
    uniform_B = torch.stack([torch.rand((), dtype=torch.float64, generator=rows[i].generator) for i in drawn])
    # The first piece whose cumulative sum is above the number drawn: never one of probability 0.
    threshold_B1 = uniform_B.to(sum_BV.device)[:, None] * sum_BV[:, -1:]
    found_B = torch.searchsorted(sum_BV, threshold_B1, right=True)[:, 0].clamp(max=sum_BV.shape[1] - 1)
    return chosen_B.index_put((at,), found_B)


def looking_back(
    logits_V: Float[Tensor, "V"], sampling: Sampling, written: Sequence[int], ends: frozenset[int]
) -> Float[Tensor, "V"]:
    """Return logits in which written pieces are less likely (or likelier), no n-gram comes a second time, and no end
    comes too early; the rules apply in the library's order."""
    if sampling.repetition_penalty != 1 and written:
        at = torch.tensor(sorted(set(written)), device=logits_V.device)
        own = logits_V[at]
        factor = sampling.repetition_penalty
        logits_V = logits_V.index_put((at,), torch.where(own < 0, own * factor, own / factor))
    barred = _repeating(written, sampling.no_repeat_ngram_size) if sampling.no_repeat_ngram_size else []
    if len(written) < sampling.min_tokens:
        barred += sorted(ends)
    return logits_V.index_fill(0, torch.tensor(barred, device=logits_V.device), -torch.inf) if barred else logits_V


def _repeating(written: Sequence[int], size: int) -> list[int]:
    """Return the pieces that would end an n-gram which was written before."""
    last = written[len(written) - size + 1 :] if size > 1 else []
    starts = range(len(written) - size + 1)
    return [written[at + size - 1] for at in starts if list(written[at : at + size - 1]) == list(last)]


def narrowed(logits_V: Float[Tensor, "V"], sampling: Sampling) -> Float[Tensor, "V"]:
    """Return the logits with -inf for all but the `top_k` likeliest, and then for all beyond the first whose
    probabilities reach `top_p`."""
    return logits_V.masked_fill(~_remaining(logits_V, logits_V.double().softmax(-1), sampling), -torch.inf)


def _remaining(
    logits_V: Float[Tensor, "V"], probability_V: Float[Tensor, "V"], sampling: Sampling
) -> Bool[Tensor, "V"]:
    """Mark the tokens that top-k keeps, and of these the ones that top-p keeps."""
    kept_V = torch.ones_like(logits_V, dtype=torch.bool)
    if 0 < sampling.top_k < len(logits_V):
        kept_V = logits_V >= logits_V.topk(sampling.top_k).values[-1]
    if sampling.top_p < 1:
        kept_V &= _nucleus(logits_V, probability_V * kept_V, sampling.top_p)
    return kept_V


def _nucleus(logits_V: Float[Tensor, "V"], probability_V: Float[Tensor, "V"], top_p: float) -> Bool[Tensor, "V"]:
    """Mark the likeliest tokens up to the first with which the share `top_p` is reached (Holtzman et al. 2020).

    Only the tokens of the bin in which that happens are sorted, so it is exact, and for a vocabulary of 150,000 it
    takes an eighth of the time that sorting takes. Equal logits are in one bin, where lower ids come first.
    """
    bin_V = ((logits_V.max() - logits_V).clamp(max=DEPTH) * (BINS / DEPTH)).long().clamp(max=BINS - 1)
    mass_J = torch.bincount(bin_V, weights=probability_V, minlength=BINS)
    before_J = mass_J.cumsum(0) - mass_J
    wanted = top_p * mass_J.sum()
    last = int((before_J < wanted).sum()) - 1
    at = (bin_V == last).nonzero()[:, 0]
    order = at[logits_V[at].argsort(descending=True, stable=True)]
    own = probability_V[order]
    kept_V = bin_V < last
    kept_V[order] = before_J[last] + own.cumsum(0) - own < wanted
    return kept_V


@final
@dataclass(eq=False)
class _Stop:
    """Track how many characters of a stop string the text read so far ends with; all steps together grow with the
    text's length only.

    `fallback[n]` is the length of the longest beginning of the word, shorter than n characters, that its first n
    characters end with (Knuth, Morris and Pratt 1977). The list grows as far as the text has matched, so that a long
    word costs nothing.
    """

    word: str
    matched: int = 0
    fallback: list[int] = field(default_factory=lambda: [0, 0])

    def read(self, new: str) -> int | None:
        """Return where in the new text the word first ends, in characters, or None if it does not."""
        if not self.word:
            return 0
        for at, character in enumerate(new, 1):
            while self.matched and self.word[self.matched] != character:
                self.matched = self._fall(self.matched)
            self.matched += self.word[self.matched] == character
            if self.matched == len(self.word):
                self.matched = 0
                return at
        return None

    def _fall(self, matched: int) -> int:
        while len(self.fallback) <= matched:
            n = len(self.fallback)
            at = self.fallback[n - 1]
            while at and self.word[at] != self.word[n - 1]:
                at = self.fallback[at]
            self.fallback.append(at + (self.word[at] == self.word[n - 1]))
        return self.fallback[matched]


@final
@dataclass(eq=False)
class IncrementalText:
    """Decode new ids to text that does not change any more; incomplete characters and a possible beginning of a stop
    string are held back."""

    tokenizer: Any
    before: Sequence[int]
    stop: tuple[str, ...] = ()
    text: str = ""
    _held: str = ""
    _ids: list[int] = field(default_factory=list)
    _from: int = 0
    _read: int = 0
    _stops: list["_Stop"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = list(self.before)[-CONTEXT:]
        self._read = len(self._ids)
        self._stops = [_Stop(word) for word in self.stop]

    def add(self, id: int) -> tuple[str, str, bool]:
        """Return the text of the piece itself, the text that is ready with it, and whether a stop string ended the
        text."""
        self._ids.append(id)
        known, whole = self._decode(self._ids[self._from : self._read]), self._decode(self._ids[self._from :])
        if whole.endswith(BROKEN):
            return "", "", False
        new = whole[len(known) :]
        self._from, self._read = self._read, len(self._ids)
        ready, stopped = self._release(new)
        return new, ready, stopped

    def end(self) -> str:
        """Return the text that was held back, when the text ends for another reason than a stop string."""
        known, whole = self._decode(self._ids[self._from : self._read]), self._decode(self._ids[self._from :])
        ready, stopped = self._release(whole[len(known) :])
        if not stopped:
            self.text += self._held
            ready, self._held = ready + self._held, ""
            for stop in self._stops:
                stop.matched = 0
        self._from = self._read = len(self._ids)
        return ready

    def _release(self, new: str) -> tuple[str, bool]:
        known = len(self._held)
        self._held += new
        ends = [known + at - len(stop.word) for stop in self._stops if (at := stop.read(new)) is not None]
        keep = max((stop.matched for stop in self._stops), default=0)
        at = min(ends) if ends else len(self._held) - keep
        ready, self._held = self._held[:at], "" if ends else self._held[at:]
        self.text += ready
        return ready, bool(ends)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
