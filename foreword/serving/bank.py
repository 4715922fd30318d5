"""Hold every prompt a server may be asked for, in three tiers: on disk, in memory, and compiled to keys and values.

Memory and compiled prompts are two least-recently-used sets, each of a stated size in bytes; the disk has them all. A
prompt in memory counts for all that it holds: numbers, record, and the encoders that it may share with others.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import final
from weakref import WeakKeyDictionary, WeakValueDictionary

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import PrefixPrompt, Prompt
from foreword.core.recent import Recent
from foreword.errors import ArtefactError
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check, suited
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.shared_prefix import PrefixCache, can_split
from foreword.serving.store import Version, read_version
from foreword.serving.weigh import bytes_of

WORK = 200_000  # tokens that the rows of one request may take by default
SHARE = 4  # the label words of a prompt may take this part of it for each row
ALONE = 16  # this part of the memory is for how the model alone is asked, in chats of so many turns
MANY = 8  # words of this many times the tokens allowed are refused before anybody looks what they share


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """Hold a prompt in memory, ready to encode rows: with labels for classification, without for generation.

    Rows share their first `shared` columns, and the keys and values of these are compiled; 0 if nothing is compiled.
    """

    version: Version
    artefact: Artefact
    value: Prompt
    labels: Encoder
    plain: Encoder
    shared: int

    def placed(self, lm: FrozenLM, row: Encoded, new: int = 0) -> Encoded:
        """Return the row as it is read, with `new` tokens after it. Its `shared` is that of the entry, or 0 if the row
        is read whole: its text has changed these columns, or a row of this length reads them otherwise."""
        splits = row.shared == self.shared and can_split(lm, row, self.shared, new)
        return replace(row, shared=self.shared if splits else 0)


@final
@dataclass(eq=False)
class PromptBank:
    """Load prompts of any form for one model. Any thread may call `entry`; only one may call `prefixes`.

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
        self._compiled: PrefixCache[Version] = PrefixCache(self.lm, self.compiled_bytes)
        self._alone: Recent[tuple[Format, int], Encoder] = Recent(self.memory_bytes // ALONE)
        # Prompts that share a template and label words share an encoder, for as long as one of them is in memory.
        self._shared: WeakValueDictionary[tuple[Format, int], Encoder] = WeakValueDictionary()
        self._bytes: WeakKeyDictionary[Encoder, int] = WeakKeyDictionary()
        self._loading: dict[Version, Future[Entry]] = {}
        self._lock = threading.Lock()

    def entry(self, version: Version) -> Entry:
        """Return a prompt from memory or from disk; if another thread is loading it, wait for that one.

        Raises: ArtefactError, ConfigError in one sentence if it is damaged or does not fit the model.
        """
        # One thread alone puts its future here and loads; the lock makes this choice and the look into memory one.
        with self._lock:
            entry = self._memory.get(version)
            if entry is not None:
                return entry
            other = self._loading.get(version)
            loading: Future[Entry] = Future()
            if other is None:
                self._loading[version] = loading
        if other is not None:
            return other.result()
        try:
            entry = self._load(version)
        except BaseException as error:
            loading.set_exception(error)
            raise
        else:
            loading.set_result(entry)
            return entry
        finally:
            with self._lock:
                del self._loading[version]

    def _load(self, version: Version) -> Entry:
        contents = read_version(version)
        artefact = Artefact.read(contents, version.id)
        warning = self.check(artefact, version.name)
        if warning:
            self.warn(f"{version.id}: {warning}")
        entry = make_entry(self.lm, version, suited(self.lm, artefact), self._encoder)
        encoders = [*{id(one): one for one in (entry.labels, entry.plain)}.values()]
        size = bytes_of(entry, apart=encoders)
        with self._lock:
            self.loads += 1
            self._memory.put(version, entry, size, [(one, self._bytes[one]) for one in encoders])
        return entry

    def check(self, artefact: Artefact, name: str = "The artefact") -> str | None:
        """Check that any prompt can be served with this model; return a warning line or None.

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
        fitted = suited(self.lm, artefact)
        labels = Encoder.build(self.lm, fitted.format, fitted.value.text_start)
        self._check_words(labels, name)
        if {*fitted.format.template.fields} - {*fitted.fields}:
            raise ArtefactError(f"{name} has a template with fields that its record does not name.")
        return warning

    def _check_words(self, labels: Encoder, name: str) -> None:
        """Check the label words. Raises: ArtefactError if they take more to read than a row may."""
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
        """Return the encoder of rows for the model alone; the encoders used last are kept."""
        with self._lock:
            encoder = self._alone.get((form, extra))
        if encoder is None:
            encoder = Encoder.build(self.lm, form, extra)
            size = bytes_of(encoder)
            with self._lock:
                self._alone.put((form, extra), encoder, size)
        return encoder

    def _encoder(self, form: Format, extra: int) -> Encoder:
        """Return a prompt's encoder, which other prompts of the same format share."""
        with self._lock:
            encoder = self._shared.get((form, extra))
        if encoder is None:
            encoder = Encoder.build(self.lm, form, extra)
            if encoder.plan is not None:
                encoder.plan.tokens(encoder.own)  # its layouts are made now, so that they count
            size = bytes_of(encoder)
            with self._lock:  # another thread may have built it meanwhile: the first one stays
                encoder = self._shared.setdefault((form, extra), encoder)
                self._bytes.setdefault(encoder, size)
        return encoder

    def prefixes(self, rows: Sequence[tuple[Entry, Encoded]]) -> list[PrefixPrompt | None]:
        """Return the keys and values that stand before each row: a prefix, or what the row shares; None if neither.

        Each row is of another entry. What is not compiled yet is compiled here, in passes of many.
        """
        sharing = [(entry, row) for entry, row in rows if row.shared and entry.shared]  # no prefix among them
        beginnings = {entry.version: row.split()[0] for entry, row in sharing}
        prompts = {entry.version: entry.value for entry, _ in sharing}
        compiled = self._compiled.prefixes(beginnings, self.lm.batch_tokens, prompts)
        before: list[PrefixPrompt | None] = []
        for entry, row in rows:
            if isinstance(entry.value, PrefixPrompt):
                before.append(entry.value)
            else:
                before.append(compiled[entry.version] if row.shared and entry.shared else None)
        return before

    def counts(self) -> dict[str, int]:
        """Return counts of prompts and bytes in both tiers, for metrics."""
        compiled, compiled_bytes, compiled_evictions = self._compiled.counts()
        with self._lock:
            return {
                "prompts_in_memory": len(self._memory),
                "prompts_compiled": compiled,
                "bytes_in_memory": self._memory.bytes + self._alone.bytes,
                "bytes_compiled": compiled_bytes,
                "loads": self.loads,
                "evictions": self._memory.evictions + compiled_evictions,
            }


def make_entry(lm: FrozenLM, version: Version, artefact: Artefact, encoder: Callable[[Format, int], Encoder]) -> Entry:
    """Return the entry of an artefact that was checked."""
    value = artefact.value.as_prompt
    assert value is not None, "nothing else is served"
    extra = value.text_start
    labels = encoder(artefact.format, extra)
    plain = encoder(artefact.format.without_labels(), extra)
    assert plain.shared == labels.shared, "label words come after the last field"
    compiles = lm.kind == "causal" and lm.takes_prefix and not isinstance(value, PrefixPrompt)
    return Entry(version, artefact, value, labels, plain, labels.shared if compiles else 0)


def _check_shape(lm: FrozenLM, artefact: Artefact, name: str) -> None:
    """Check that rows of other prompts can share a batch with a prefix. Raises: ArtefactError."""
    value = artefact.value.as_prompt
    if isinstance(value, PrefixPrompt):
        lm.require_prefix()
        if set(value.sites) != {"self"}:
            raise ArtefactError(f"{name} has prefixes at {', '.join(value.sites)}; served are those of one decoder.")
        if lm.kind == "causal" and value.start != value.length:
            raise ArtefactError(f"{name} starts its text at {value.start}, which no causal model does after a prefix.")
