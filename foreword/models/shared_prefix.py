"""Read what rows share at their front once, and keep it as a prefix of keys and values.

This is exact for causal models: the beginning of a row never sees what follows, so its keys and values are the same in
every row. Split a row with `Encoded.split`, check the place with `can_split`, compile the beginnings, and read the
rests with `bank_after`.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, final

import torch

from foreword.core.format import Format
from foreword.core.prompts import Bank, HardPrompt, PrefixPrompt, Prompt, SoftPrompt, lower, stack
from foreword.core.recent import Recent
from foreword.core.shapes import Float, Tensor
from foreword.core.values import Learnt
from foreword.errors import ConfigError, ModelError
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import collate, prepare
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.encoding.row_items import Gap

K = TypeVar("K")


def can_split(lm: FrozenLM, row: Encoded, at: int, new: int = 0) -> bool:
    """Return whether the model reads a row, with `new` tokens after it, alike if its first `at` columns are a prefix.

    Both halves need a column. False for models that are not causal or take no prefix, and if the whole row is so long
    that the model rotates it by other frequencies (`FrozenLM.begins_alike`).
    """
    able = lm.kind == "causal" and lm.takes_prefix and 0 < at < len(row.ids_S)
    return able and lm.begins_alike(at, len(row) + new)


def shared_columns(rows: Sequence[Encoded]) -> int:
    """Return how many columns all rows begin with, words that go on into a field included; at least one column of each
    row is left. For a single row, return its `shared`.

    A tokeniser may join such words with the field, so only the rows themselves show where they part.
    """
    first = rows[0]
    if len(rows) == 1:
        return first.shared
    shared = min(row.answer for row in rows)
    for row in rows[1:]:
        same_S = (first.ids_S[:shared] == row.ids_S[:shared]) & (first.slot_S[:shared] == row.slot_S[:shared])
        shared = int(same_S.argmin()) if not same_S.all() else shared
    return shared


def compile_prefixes(lm: FrozenLM, beginnings: Sequence[Encoded], bank: Bank | None = None) -> list[PrefixPrompt]:
    """Return the keys and values of rows that `can_split` has checked, from one pass; differentiable in the bank.

    Slots of row t are filled from prompt t of the bank.
    """
    inputs, _ = prepare(lm, collate(beginnings), bank, torch.arange(len(beginnings)))
    keys_NBSHK, values_NBSHK = lm.states(inputs)
    lengths = [len(row.ids_S) for row in beginnings]
    return [
        PrefixPrompt({"self": (keys_NBSHK[:, b, :length], values_NBSHK[:, b, :length])}, length)
        for b, length in enumerate(lengths)
    ]


@torch.no_grad()
def compile_in_passes(
    lm: FrozenLM, beginnings: Sequence[Encoded], budget: int, prompts: Sequence[Prompt] | None = None
) -> list[PrefixPrompt]:
    """Return the prefix of each row, in passes of at most `budget` tokens. Each has its own memory.

    Slots of row t are filled from `prompts[t]`.
    """
    prefixes: list[PrefixPrompt | None] = [None] * len(beginnings)
    order = sorted(range(len(beginnings)), key=lambda t: -len(beginnings[t].ids_S))
    while order:
        size = max(1, budget // len(beginnings[order[0]].ids_S))
        chosen, order = order[:size], order[size:]
        bank = None if prompts is None else stack([prompts[t] for t in chosen], lm.embed, lm.device)
        for t, prefix in zip(chosen, compile_prefixes(lm, [beginnings[t] for t in chosen], bank), strict=True):
            keys, values = (states.clone() for states in prefix.sites["self"])  # a view would keep the whole pass
            prefixes[t] = replace(prefix, sites={"self": (keys, values)})
    return [prefix for prefix in prefixes if prefix is not None]


def bank_after(
    lm: FrozenLM, prefixes: Sequence[PrefixPrompt | None], soft_TPD: Float[Tensor, "T P D"] | None = None
) -> Bank:
    """Return a bank of the prefixes (None: no columns), whose slots after them are filled from `soft_TPD`."""
    nothing = HardPrompt.empty()
    bank = stack([nothing if prefix is None else prefix for prefix in prefixes], lm.embed, lm.device)
    return bank if soft_TPD is None else replace(bank, soft_TPD=soft_TPD)


@final
class PrefixCache(Generic[K]):
    """Keep compiled prefixes by a key, up to `limit` bytes; the least recently used go first.

    One thread compiles; any thread may ask for counts.
    """

    def __init__(self, lm: FrozenLM, limit: int):
        self._lm = lm
        self._recent: Recent[K, PrefixPrompt] = Recent(limit)
        self._lock = threading.Lock()
        self.compiled = 0  # beginnings that went through the model

    def prefixes(
        self, wanted: Mapping[K, Encoded], budget: int, prompts: Mapping[K, Prompt] | None = None
    ) -> dict[K, PrefixPrompt]:
        """Return the prefix of each beginning; compile those that are not kept, in passes of at most `budget` tokens.

        The caller holds what is returned, so that all of it is there even if the cache has room for less.
        """
        # The lock guards the order of use, which counts are read beside. The model runs outside of it.
        with self._lock:
            cached = {key: prefix for key in wanted if (prefix := self._recent.get(key)) is not None}
        missing = [key for key in wanted if key not in cached]
        fillings = None if prompts is None else [prompts[key] for key in missing]
        compiled = compile_in_passes(self._lm, [wanted[key] for key in missing], budget, fillings)
        with self._lock:
            for key, prefix in zip(missing, compiled, strict=True):
                self._recent.put(key, prefix, sum(states.nbytes for states in prefix.sites["self"]))
        self.compiled += len(missing)
        return cached | dict(zip(missing, compiled, strict=True))

    def counts(self) -> tuple[int, int, int]:
        """Return the number of prefixes, their bytes, and how many were dropped for others."""
        with self._lock:
            return len(self._recent), self._recent.bytes, self._recent.evictions


@final
@dataclass(frozen=True)
class Group:
    """Hold the learners whose rows are read together. If `shared`, what each learner's rows begin with is read once."""

    owners: tuple[int, ...]
    shared: bool


def groups_of(
    lm: FrozenLM, values: Sequence[Learnt], rows: Sequence[Sequence[Encoded]], budget: int, share: bool = True
) -> list[Group]:
    """Group learners that have rows: those whose rows share nothing, then the others, as many at once as the budget has
    room for their beginnings. If not `share`, nothing is split."""
    sharing = [o for o, (v, r) in enumerate(zip(values, rows, strict=True)) if share and _begin_alike(lm, v, r)]
    rest = tuple(o for o in range(len(values)) if o not in {*sharing} and rows[o])
    groups = [Group(rest, False)] if rest else []
    size = max(1, budget // max((rows[o][0].shared for o in sharing), default=1))
    return groups + [Group(tuple(sharing[i : i + size]), True) for i in range(0, len(sharing), size)]


def _begin_alike(lm: FrozenLM, value: Learnt, rows: Sequence[Encoded]) -> bool:
    """Return whether several rows begin with the same columns, and can all be read after them."""
    if isinstance(value.as_prompt, PrefixPrompt | None) or value.changes_weights or len(rows) < 2:
        return False
    return all(row.shared == rows[0].shared and can_split(lm, row, row.shared) for row in rows)


@final
@dataclass(frozen=True, eq=False)
class Compiled:
    """Hold a prefix in place of the first `columns` columns of every row of a format: encode, then `after(row)`.

    `rest` is the soft prompt if slots remain after these columns (they keep their numbers), else None.
    """

    prefix: PrefixPrompt
    rest: SoftPrompt | None
    columns: int

    def after(self, row: Encoded) -> Encoded:
        """Return what is read after the prefix."""
        return row.split(self.columns)[1]

    def bank(self, lm: FrozenLM) -> Bank:
        """Return a bank of this one prompt."""
        return bank_after(lm, [self.prefix], None if self.rest is None else self.rest.embed_PD[None].to(lm.device))


@torch.no_grad()
def compile_prompt(lm: FrozenLM, format: Format, prompt: Prompt) -> Compiled:
    """Lower the constant beginning of a format, slots included, to a prefix that is computed once and equals it.

    Raises: ModelError for a model with an encoder, or one that rotates long rows otherwise, for which no such prefix
    exists; ConfigError if nothing constant leads.
    """
    if lm.kind == "seq2seq":
        raise ModelError(
            f"{lm.name!r} is an encoder-decoder model: what leads a row's source sees the text after it, so no prefix "
            "equals it; keep the soft prompt."
        )
    if lm.kind != "causal":
        raise ModelError(
            f"{lm.name!r} is a masked model: what leads a row sees the text after it, so no prefix equals it; keep the "
            "soft prompt, or load the model as causal."
        )
    lm.require_prefix()
    if isinstance(prompt, PrefixPrompt):
        raise ConfigError("The prompt to compile is a prefix already; use it as it is.")
    encoder = Encoder.build(lm, format)
    if prompt.length != encoder.prompt_length:
        raise ConfigError(
            f"The template has slots for {encoder.prompt_length} positions and the prompt given has {prompt.length}; "
            "compile it with the template it was learnt for."
        )
    constant = encoder.row.before_fields
    if not constant or not format.template.fields:
        raise ConfigError(
            f"In the template {format.template.source!r} nothing constant leads a field of the row, so there is "
            "nothing to compile; put the slot or the instruction before the first field."
        )
    if not lm.begins_alike(constant, lm.dims.context):
        raise ModelError(
            f"{lm.name!r} rotates long rows by other frequencies than short ones, so what leads a row of "
            f"{lm.dims.context} tokens, its context, has other keys than what leads a short one, and no prefix equals "
            "both: use the prompt as it is."
        )
    soft = lower(prompt, lm.embed)
    columns: list[torch.Tensor] = []
    filled = 0
    for item in encoder.row.items:
        if sum(map(len, columns)) == constant:
            break
        assert item.ids is not None, "the constant beginning ends before the first field"
        if isinstance(item, Gap):
            filled = item.start + len(item.ids)
            columns.append(soft.embed_PD[item.start : filled].to(lm.device, lm.dtype))
        elif item.ids:
            columns.append(lm.embed(torch.tensor([item.ids], device=lm.device))[0])
    prefix = lm.prefix_from_embeddings(torch.cat(columns))
    return Compiled(prefix, soft if filled < soft.length else None, constant)
