"""Generate text for rows of a causal or an encoder-decoder model, piece by piece, in a batch whose places are filled
again as texts end.

A row is read once for all its samples: its keys and values are computed in one cache and copied to another, where each
sample continues by itself. An encoder reads its source in the same pass, and what its decoder reads of the source is
kept the same way. What a sample draws depends on its own seed alone, never on the other rows of its batch.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch

from foreword.core.format import Decoding
from foreword.core.inject import PrefixBatch
from foreword.core.kv_cache import SHARED, CachedRows, RowCache
from foreword.core.prompts import Bank, PrefixPrompt
from foreword.core.shapes import Float, Tensor
from foreword.errors import ModelError
from foreword.models.base import FrozenLM, Inputs
from foreword.models.decoding import Chooser, IncrementalText, Sampling, choose
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.memory import fitting

PLACES = 64  # texts under way at once, where memory has room for their keys and values
MEMORY = 2**30  # bytes of keys and values


@final
@dataclass(frozen=True, eq=False)
class Ask:
    """Describe one row to be continued. `encoded` follows `prefix`; slots are filled from prompt `task` of the bank.

    Sample s is drawn with the seed `seeds[s]`; greedy decoding draws nothing. At most `ahead` samples are in progress
    before the first has ended.
    """

    encoded: Encoded
    prefix: PrefixPrompt | None
    task: int
    decoding: Decoding
    seeds: tuple[int, ...]
    ahead: int


@final
@dataclass(frozen=True)
class GeneratedText:
    """Hold one text: its number of pieces, the mean of their log-probabilities, and whether it ended by itself."""

    text: str
    pieces: int
    mean_logprob: float
    ended: bool


@final
@dataclass(eq=False)
class _Trunk:
    """Hold a row that was read and has samples to begin: its place in the cache of rows, and the logits of its next
    piece."""

    row: int
    at: int
    logits_V: Tensor
    needed: int
    begun: int = 0
    ended: int = 0


@final
@dataclass(eq=False)
class _Text:
    row: int
    sample: int
    chooser: Chooser
    writer: IncrementalText
    pieces: int = 0
    logprob: float = 0.0
    last: int = -1
    stopped: bool | None = None  # whether it ended by itself; None while it goes on


OnSample = Callable[[int, int, GeneratedText], int]  # row, sample, text: how many more the row needs at least


@torch.no_grad()
def write(lm: FrozenLM, asks: Sequence[Ask], bank: Bank | None, on_sample: OnSample) -> None:
    """Write every sample of every row, the first samples of rows before their second ones.

    `on_sample` is called with each text as it ends and returns how many more of the row are needed at least: that many
    may be in progress, and once it returns none, nothing more is written of the row.

    Raises: ModelError for a masked model, for a causal model that takes no prefix, for logits that are not finite, or
    if memory runs out with a single row or after a text was passed to `on_sample`.
    """
    if not lm.writes:
        raise ModelError(
            f"{lm.name} is a masked model, which cannot generate; load it with kind causal or choose another."
        )
    if not asks:
        return
    loop: _Loop | None = None

    def run(places: int) -> None:
        nonlocal loop
        loop = None  # its caches make room for the new ones
        loop = _Loop(lm, asks, bank, on_sample, places, lm.cache(places), lm.cache(places))
        loop.run()

    def repeatable() -> bool:
        return loop is None or not loop.told

    refusal = "{} texts at once; use a smaller model, fewer new tokens or --dtype bfloat16"
    fitting(run, _places(lm, asks), 1, refusal, unit="texts at once", repeatable=repeatable)


def as_cached(lm: FrozenLM, prefix: PrefixPrompt | None) -> PrefixPrompt | None:
    """Return a prefix as a cache of the model's keys and values keeps it: in the model's dtype, whatever dtype it was
    learnt in."""
    if prefix is None:
        return None
    sites = {site: (keys.to(lm.dtype), values.to(lm.dtype)) for site, (keys, values) in prefix.sites.items()}
    return replace(prefix, sites=sites)


def _places(lm: FrozenLM, asks: Sequence[Ask]) -> int:
    """Return the number of texts to write at once: as many as memory has room for, beside the prefixes that rows
    share."""
    prefixes = {ask.prefix for ask in asks if ask.prefix is not None} if lm.kind == "causal" else set()
    shared = {prefix for prefix in prefixes if prefix.length >= SHARED}
    own = max(_length(ask) - (_ahead(ask) if ask.prefix in shared else 0) + ask.decoding.max_new_tokens for ask in asks)
    row = own * _bytes(lm, "self")
    if "cross" in lm.sites:
        row += max(_source(ask) + _ahead(ask) for ask in asks) * _bytes(lm, "cross")
    room = MEMORY - sum(prefix.length for prefix in shared) * _bytes(lm, "self")
    return max(1, min(PLACES, room // (2 * row), sum(len(ask.seeds) for ask in asks)))


def _bytes(lm: FrozenLM, site: str) -> int:
    """Return the bytes of the keys and values of one column at this site."""
    sizes = lm.sites[site]
    return 2 * sizes.layers * sizes.heads * sizes.head_size * torch.finfo(lm.dtype).bits // 8


def _length(ask: Ask) -> int:
    return len(ask.encoded.ids_S) + _ahead(ask)


def _ahead(ask: Ask) -> int:
    return 0 if ask.prefix is None else ask.prefix.length


def _source(ask: Ask) -> int:
    return 0 if ask.encoded.source is None else len(ask.encoded.source.ids_S)


@final
@dataclass(eq=False)
class _Loop:
    lm: FrozenLM
    asks: Sequence[Ask]
    bank: Bank | None
    on_sample: OnSample
    places: int
    rows: RowCache  # rows that were read
    live: RowCache  # texts under way
    told: bool = False  # whether a text has been handed on, after which nothing can begin again
    waiting: deque[int] = field(default_factory=deque)
    enough: set[int] = field(default_factory=set)
    by_row: dict[int, _Trunk] = field(default_factory=dict)
    trunks: deque[_Trunk] = field(default_factory=deque)
    texts: list[_Text] = field(default_factory=list)

    def run(self) -> None:
        self.waiting.extend(sorted(range(len(self.asks)), key=lambda r: -self._cost(r)))
        while self.waiting or self.trunks or self.texts:
            self._begin()
            self._step()

    def _cost(self, row: int) -> int:
        return _length(self.asks[row]) + _source(self.asks[row])

    def _begin(self) -> None:
        """Fill free places with the next sample of each row that was read, then with new rows."""
        while len(self.texts) < self.places:
            few = len(self.trunks) < self.places - len(self.texts) or 2 * len(self.rows) <= self.places
            if self.waiting and few and len(self.rows) < self.places:
                self._read()
            for _ in range(len(self.trunks)):
                trunk = self.trunks[0]
                if trunk.row in self.enough or trunk.begun - trunk.ended < trunk.needed:
                    self._start()
                    break
                self.trunks.rotate(-1)
            else:
                return  # all that was read has as many texts under way as it may need

    def _read(self) -> None:
        """Read as many waiting rows as there are places, in one pass."""
        taken: list[int] = []
        tokens, free = 0, self.places - len(self.rows)
        while self.waiting and len(taken) < free:
            ask = self.asks[self.waiting[0]]
            tokens += len(ask.encoded.ids_S) + _source(ask)
            if taken and tokens > self.lm.batch_tokens:
                break
            taken.append(self.waiting.popleft())
        asks, first = [self.asks[r] for r in taken], len(self.rows)
        for ask in asks:
            self.rows.add(as_cached(self.lm, ask.prefix), shared=ask.prefix)
        # The cache has the prefixes, but for the one that an encoder reads its source after.
        soft = None if self.bank is None else replace(self.bank, keys_TNQHK=None, values_TNQHK=None)
        inputs, prefix = prepare(
            self.lm, collate([a.encoded for a in asks]), soft, torch.tensor([a.task for a in asks])
        )
        cached = self.rows.next(first, [len(a.encoded.ids_S) for a in asks], [_source(a) for a in asks])
        logits_BV = self._logits(inputs, prefix, cached)
        # To the front: their first samples come before the second ones of others.
        fresh = [_Trunk(row, first + n, logits_BV[n], self.asks[row].ahead) for n, row in enumerate(taken)]
        self.by_row.update({trunk.row: trunk for trunk in fresh})
        self.trunks.extendleft(reversed(fresh))

    def _start(self) -> None:
        """Begin one sample of the first row in the queue of rows that were read."""
        trunk = self.trunks.popleft()
        ask = self.asks[trunk.row]
        if trunk.row not in self.enough:
            self.live.add_copy(self.rows, trunk.at)
            chooser = Chooser.of(Sampling.of(ask.decoding, ask.seeds[trunk.begun]), self.lm.stops)
            writer = IncrementalText(self.lm.tokenizer, ask.encoded.text_ids, ask.decoding.stop_strings)
            text = _Text(trunk.row, trunk.begun, chooser, writer)
            self.texts.append(text)
            trunk.begun += 1
            self._advance([text], trunk.logits_V[None])
            if trunk.row not in self.enough and trunk.begun < len(ask.seeds):
                self.trunks.append(trunk)
                self._leave()
                return
        self._forget(trunk)
        self._leave()

    def _forget(self, trunk: _Trunk) -> None:
        last = len(self.rows) - 1
        self.rows.drop(trunk.at)
        trunk.logits_V = trunk.logits_V.new_zeros(0)  # a row of the whole vocabulary is not kept for nothing
        for other in self.trunks:
            if other.at == last:
                other.at = trunk.at

    def _step(self) -> None:
        """Write one more piece of every text in progress."""
        if not self.texts:
            return
        count = len(self.texts)
        ids_B1 = torch.tensor([[text.last] for text in self.texts], device=self.lm.device)
        zeros_B1 = torch.zeros(count, 1, dtype=torch.long, device=self.lm.device)
        inputs = Inputs(self.lm.embed(ids_B1), torch.ones_like(zeros_B1, dtype=torch.bool), zeros_B1, zeros_B1)
        self._advance([*self.texts], self._logits(inputs, None, self.live.next(0, [1] * count)))
        self._leave()

    def _logits(self, inputs: Inputs, prefix: PrefixBatch | None, cached: CachedRows) -> Float[Tensor, "B V"]:
        hidden_BRD = self.lm.hidden_at(inputs, prefix, cached)
        logits_BV = self.lm.vocabulary_logits(hidden_BRD[:, 0])
        if not bool(logits_BV.isfinite().all()):
            raise ModelError(f"{self.lm.name} gave logits that are not numbers; use another --dtype.")
        return logits_BV

    def _advance(self, texts: Sequence[_Text], logits_BV: Float[Tensor, "B V"]) -> None:
        """Choose each text's next piece, and pass the texts that end with it to `on_sample`."""
        chosen_B = choose(logits_BV, [text.chooser for text in texts])
        at_B1 = chosen_B[:, None]
        logprob_B = (logits_BV.gather(1, at_B1)[:, 0] - logits_BV.logsumexp(-1)).tolist()
        for text, id, logprob in zip(texts, chosen_B.tolist(), logprob_B, strict=True):
            if text.row in self.enough:
                continue
            text.pieces += 1
            text.logprob += logprob
            text.last = int(id)
            if text.last in self.lm.stops:
                text.stopped = True
            elif text.writer.add(text.last)[2]:
                text.stopped = True
            elif text.pieces >= text.chooser.sampling.max_tokens:
                text.stopped = False
            if text.stopped is None:
                continue
            text.writer.end()
            self.told = True
            sample = GeneratedText(text.writer.text, text.pieces, text.logprob / text.pieces, text.stopped)
            trunk = self.by_row[text.row]
            trunk.ended += 1
            trunk.needed = self.on_sample(text.row, text.sample, sample)
            if trunk.needed <= 0:
                self.enough.add(text.row)

    def _leave(self) -> None:
        """Free the places of texts that have ended, and of texts whose rows need no more."""
        for index in reversed(range(len(self.texts))):
            text = self.texts[index]
            if text.stopped is not None or text.row in self.enough:
                self.live.drop(index)
                self.texts[index] = self.texts[-1]
                self.texts.pop()
