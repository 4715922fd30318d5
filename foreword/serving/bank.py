"""Every prompt a server may be asked for, in three tiers: on disk, in memory, and compiled to keys and values.

Memory and compiled prompts are two least-recently-used sets, each of a stated size in bytes; the disk has them all. A
prompt in memory counts for all that it holds: numbers, record, and the encoders that it may share with others.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar, final
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import PrefixPrompt, Prompt, stack
from foreword.errors import ArtefactError
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check, suited
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.shared_prefix import compile_leads
from foreword.serving.store import Version, read_version
from foreword.serving.weigh import bytes_of

WORK = 200_000  # tokens that the rows of one request may take by default
SHARE = 4  # the label words of a prompt may take this part of it for each row
ALONE = 16  # this part of the memory is for how the model alone is asked, in chats of so many turns
MANY = 8  # words of this many times the tokens allowed are refused before anybody looks what they share

K = TypeVar("K")
V = TypeVar("V")
Part = tuple[object, int]  # what values may share, and its bytes


@final
class Recent(Generic[K, V]):
    """What was used last, up to so many bytes; not thread-safe. Parts that several values share count once."""

    def __init__(self, limit: int):
        self.limit, self.bytes, self.evictions = limit, 0, 0
        self._kept: OrderedDict[K, tuple[V, int, Sequence[Part]]] = OrderedDict()
        self._users: Counter[int] = Counter()  # of each part, by its identity

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, size: int, parts: Sequence[Part] = ()) -> None:
        """Keep a value of `size` bytes and its parts. What is larger than the whole limit is not kept."""
        self.drop(key)
        if size + sum(own for _, own in parts) > self.limit:
            return
        self._kept[key] = (value, size, parts)
        self.bytes += size
        for part, own in parts:
            self.bytes += 0 if self._users[id(part)] else own
            self._users[id(part)] += 1
        while self.bytes > self.limit:
            self.drop(next(iter(self._kept)))
            self.evictions += 1

    def drop(self, key: K) -> None:
        found = self._kept.pop(key, None)
        if found is None:
            return
        _, size, parts = found
        self.bytes -= size
        for part, own in parts:
            self._users[id(part)] -= 1
            if not self._users[id(part)]:
                del self._users[id(part)]
                self.bytes -= own


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """A prompt in memory, ready to encode rows: labels for classification, and no labels for text that goes on.

    `lead` columns at the front of rows are the same, and their keys and values are compiled; 0 where none are.
    """

    version: Version
    artefact: Artefact
    value: Prompt
    labels: Encoder
    plain: Encoder
    lead: int

    def led(self, lm: FrozenLM, row: Encoded, new: int = 0) -> Encoded:
        """The row as it is read, with `new` tokens after it: after the compiled columns, or whole, if its own text has
        changed them or the model reads so long a row otherwise."""
        leads = row.shared == self.lead and lm.begins_alike(self.lead, len(row) + new)
        return replace(row, lead=self.lead if leads else 0)


@final
@dataclass(eq=False)
class PromptBank:
    """Loads prompts of any form for one model; `entry` may be called from any thread, `prefixes` from one alone.

    A prompt's label words may take `most` tokens for each row.
    """

    lm: FrozenLM
    memory_bytes: int
    compiled_bytes: int
    allow_other_weights: bool = False
    most: int = WORK // SHARE
    loads: int = 0
    warn: Callable[[str], None] = field(default=lambda line: None)

    def __post_init__(self) -> None:
        self._memory: Recent[Version, Entry] = Recent(self.memory_bytes - self.memory_bytes // ALONE)
        self._compiled: Recent[Version, PrefixPrompt] = Recent(self.compiled_bytes)
        self._alone: Recent[tuple[Format, int], Encoder] = Recent(self.memory_bytes // ALONE)
        # Prompts that share a template and label words share an encoder, for as long as one of them is in memory.
        self._shared: WeakValueDictionary[tuple[Format, int], Encoder] = WeakValueDictionary()
        self._bytes: WeakKeyDictionary[Encoder, int] = WeakKeyDictionary()
        self._loading: dict[Version, Future[Entry]] = {}
        self._lock = threading.Lock()

    def entry(self, version: Version) -> Entry:
        """From memory, or from disk; who asks for a prompt that another thread is loading waits for that one.

        Raises: ArtefactError, ConfigError in one sentence where it is damaged or does not fit the model.
        """
        with self._lock:
            found = self._memory.get(version)
            if found is not None:
                return found
            other = self._loading.get(version)
            own: Future[Entry] = Future()
            if other is None:
                self._loading[version] = own
        if other is not None:
            return other.result()
        try:
            made = self._load(version)
        except BaseException as error:
            own.set_exception(error)
            raise
        else:
            own.set_result(made)
            return made
        finally:
            with self._lock:
                del self._loading[version]

    def _load(self, version: Version) -> Entry:
        contents = read_version(version)
        artefact = Artefact.read(contents, version.id)
        warning = self.check(artefact, version.name)
        if warning:
            self.warn(f"{version.id}: {warning}")
        made = make_entry(self.lm, version, suited(self.lm, artefact), self._encoder)
        encoders = [*{id(one): one for one in (made.labels, made.plain)}.values()]
        size = bytes_of(made, apart=encoders)
        with self._lock:
            self.loads += 1
            self._memory.put(version, made, size, [(one, self._bytes[one]) for one in encoders])
        return made

    def check(self, artefact: Artefact, name: str = "The artefact") -> str | None:
        """Whether a prompt can be served with this model, whoever made it; a warning line or None.

        Raises: ArtefactError, ConfigError in one sentence.
        """
        if artefact.format.decoding is not None and artefact.format.answers != "text":
            raise ArtefactError(
                f"{name} reasons in text before it gives a label, which is not served; use it with `foreword predict`."
            )
        parts = artefact.value.parts(artefact.format)
        if len(parts) > 1 or artefact.value.rewrites_rows or artefact.format.premise is not None:
            what = "each row's options are read a second time" if artefact.format.premise is not None else artefact.form
            raise ArtefactError(
                f"{name} takes more than one prompt before a row ({what}), which is not served; serve one of its "
                "members, or use it with `foreword predict`."
            )
        if artefact.value.as_prompt is None or artefact.value.changes_weights:
            raise ArtefactError(
                f"{name} is of the form {artefact.form}; served are words, soft prompts and prefixes, which share one "
                "frozen model. Serve what changes the weights from a model of its own."
            )
        warning = check(self.lm, artefact, allow_other_weights=self.allow_other_weights)
        _check_shape(self.lm, artefact, name)
        own = suited(self.lm, artefact)
        labels = Encoder.build(self.lm, own.format, own.value.text_start)
        self._check_words(labels, name)
        if {*own.format.template.fields} - {*own.fields}:
            raise ArtefactError(f"{name} has a template with fields that its record does not name.")
        return warning

    def _check_words(self, labels: Encoder, name: str) -> None:
        """Raises: ArtefactError for label words that take more to read than a row may."""
        if labels.plan is None:
            return
        tokens = sum(len(word) for label in labels.plan.words for word in label)
        if tokens <= MANY * self.most:
            tokens = labels.plan.tokens(labels.own)
        if tokens > self.most:
            words = sum(map(len, labels.plan.words))
            raise ArtefactError(
                f"{name} has {words:,} label words that take {tokens:,} tokens for each row, and {self.most:,} are "
                "allowed; give it fewer or shorter label words, or serve it with more work a request (--max-work)."
            )

    def encoder(self, form: Format, extra: int) -> Encoder:
        """How the model alone reads rows of this format; what was used last is kept."""
        with self._lock:
            found = self._alone.get((form, extra))
        if found is None:
            found = Encoder.build(self.lm, form, extra)
            size = bytes_of(found)
            with self._lock:
                self._alone.put((form, extra), found, size)
        return found

    def _encoder(self, form: Format, extra: int) -> Encoder:
        """A prompt's encoder, which other prompts of the same format share."""
        with self._lock:
            found = self._shared.get((form, extra))
        if found is None:
            found = Encoder.build(self.lm, form, extra)
            if found.plan is not None:
                found.plan.tokens(found.own)  # its layouts are made now, so that they count
            size = bytes_of(found)
            with self._lock:
                found = self._shared.setdefault((form, extra), found)
                self._bytes.setdefault(found, size)
        return found

    @torch.no_grad()
    def prefixes(self, rows: Sequence[tuple[Entry, Encoded]]) -> list[PrefixPrompt | None]:
        """The keys and values that stand before each row: a prefix, or the row's lead, compiled; None where neither.

        Each row is of another entry. What is not compiled yet is compiled here, in passes of many.
        """
        found: list[PrefixPrompt | None] = []
        missing: list[int] = []
        with self._lock:
            for index, (entry, row) in enumerate(rows):
                if isinstance(entry.value, PrefixPrompt):
                    found.append(entry.value)
                    continue
                leads = entry.lead > 0 and row.lead > 0
                found.append(self._compiled.get(entry.version) if leads else None)
                if leads and found[-1] is None:
                    missing.append(index)
        size = max(1, self.lm.batch_tokens // max((rows[i][1].lead for i in missing), default=1))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            bank = stack([rows[i][0].value for i in part], self.lm.embed, self.lm.device)
            made = compile_leads(self.lm, [rows[i][1] for i in part], bank)
            with self._lock:
                for index, prefix in zip(part, made, strict=True):
                    keys, values = (t.clone() for t in prefix.sites["self"])  # else all share one tensor's memory
                    found[index] = own = PrefixPrompt({"self": (keys, values)}, prefix.start)
                    self._compiled.put(rows[index][0].version, own, bytes_of(own))
        return found

    def counts(self) -> dict[str, int]:
        """Of prompts and bytes in both tiers, for metrics."""
        with self._lock:
            return {
                "prompts_in_memory": len(self._memory),
                "prompts_compiled": len(self._compiled),
                "bytes_in_memory": self._memory.bytes + self._alone.bytes,
                "bytes_compiled": self._compiled.bytes,
                "loads": self.loads,
                "evictions": self._memory.evictions + self._compiled.evictions,
            }


def make_entry(lm: FrozenLM, version: Version, artefact: Artefact, encoder: Callable[[Format, int], Encoder]) -> Entry:
    """Of an artefact that was checked."""
    value = artefact.value.as_prompt
    assert value is not None, "nothing else is served"
    extra = value.text_start
    labels = encoder(artefact.format, extra)
    plain = encoder(artefact.format.without_labels(), extra)
    assert plain.shared == labels.shared, "label words come after the last field"
    leads = lm.kind == "causal" and lm.takes_prefix and not isinstance(value, PrefixPrompt)
    return Entry(version, artefact, value, labels, plain, labels.shared if leads else 0)


def _check_shape(lm: FrozenLM, artefact: Artefact, name: str) -> None:
    """Whether a prefix is one that rows of other prompts can share a batch with."""
    value = artefact.value.as_prompt
    if isinstance(value, PrefixPrompt):
        lm.require_prefix()
        if set(value.sites) != {"self"}:
            raise ArtefactError(f"{name} has prefixes at {', '.join(value.sites)}; served are those of one decoder.")
        if lm.kind == "causal" and value.start != value.length:
            raise ArtefactError(f"{name} starts its text at {value.start}, which no causal model does after a prefix.")
