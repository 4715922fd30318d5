"""Save and load an artefact: what was learnt, and what is needed to use, check and remake it. No pickle anywhere."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from foreword.core.arguments import checked
from foreword.core.data_paths import portable, resolved
from foreword.core.files import present, read_folder, write_folder
from foreword.core.format import Format, without_clock
from foreword.core.html import html_table
from foreword.core.plain import LONGEST
from foreword.core.record import PARTS, check_record, check_seal, parse_record, sealed
from foreword.core.serialise import check_header, unpack
from foreword.core.text import shown
from foreword.core.values import Learnt
from foreword.errors import ArtefactError, ForewordError

SCHEMA = 1
TENSORS, RECORD, CARD = "prompt.safetensors", "foreword.json", "README.md"
PLAIN = (
    "method", "config", "seed", "model", "fingerprint", "metrics", "hashes", "recipe", "parent", "numbers_trained"
)  # fmt: skip
# Errors that reading the bytes of others may end with.
BROKEN = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError, SafetensorError)
MOST = {TENSORS: 2**40, RECORD: LONGEST, CARD: LONGEST}  # bytes that are read of each file


@dataclass(frozen=True, eq=False)
class Artefact:
    """Hold a learnt value with its format and its record.

    `model` names the model it was made for and `fingerprint` says which one exactly: tokenizer, shape, weights, dtype.
    `hashes` are of the splits and `metrics` of the validation rows; `recipe` remakes it. `trace` is what a search did,
    step by step.
    """

    value: Learnt
    format: Format
    method: str
    config: dict[str, Any]
    seed: int
    model: dict[str, Any]
    fingerprint: dict[str, str]
    fields: tuple[str, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    numbers_trained: int = 0
    trace: dict[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> str:
        return self.value.form

    @property
    def any_model(self) -> bool:
        """Return whether any model may read it: words alone, or no model at all. Token ids are of one tokenizer."""
        return self.value.any_model

    @property
    def holds_rows(self) -> bool:
        """Return whether it holds training rows in clear: demonstrations, or a pool of them."""
        worked = bool(self.config.get("demonstrations"))  # chain of thought has them as words of its template
        parts = self.value.parts(self.format)
        return worked or any(value.holds_rows or form.template.holds_data for value, form in parts)

    @property
    def bytes_stored(self) -> int:
        """Return the bytes of its tensors; hard prompts live in the template and store none."""
        return sum(t.numel() * t.element_size() for t in self.value.tensors().values())

    @property
    def sha256(self) -> str:
        """Return the hash of the tensor file, as its record has it."""
        return hashlib.sha256(self._tensor_bytes()).hexdigest()

    def _tensor_bytes(self) -> bytes:
        cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in self.value.tensors().items()}
        return tensors_to_bytes(cpu, {"format": "pt"})

    @property
    def made_of(self) -> str:
        """Return what decides the artefact besides the model: rows and recipe. Equal to `made_of` of its job."""
        return made_of(self.method, self.config, self.seed, self.hashes, self.recipe.get("format"))

    def with_metrics(self, **metrics: Any) -> "Artefact":
        return replace(self, metrics={**self.metrics, **metrics})

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write the folder through a temporary one and a rename, so that a half-written artefact never has its name.

        Raises: ArtefactError if the folder holds something that is not an artefact, or cannot be written.
        """
        target = Path(folder)
        data = self._tensor_bytes()
        parts = replace(self, recipe=portable(self.recipe, target))._record(data)
        record = json.dumps(sealed(parts), indent=2, ensure_ascii=False) + "\n"
        try:
            write_folder(
                target, {TENSORS: data, RECORD: record.encode(), CARD: self._card().encode()}, _refuse_to_replace
            )
        except OSError as error:
            raise ArtefactError(
                f"{target} could not be written ({error.strerror or error}); what was there is unchanged."
            ) from error
        return target

    def _record(self, data: bytes) -> dict[str, Any]:
        record = {
            **{name: getattr(self, name) for name in PLAIN},
            "schema": SCHEMA,
            "form": self.form,
            "format": self.format.to_json(),
            "fields": list(self.fields),
            **({"trace": self.trace} if self.trace else {}),
            "value": self.value.record(),
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
        }
        return {name: record[name] for name in PARTS if name in record}

    @staticmethod
    @checked
    def load(folder: str | Path) -> "Artefact":
        """Read and check an artefact: sizes, dtypes, finiteness and the tensor file's hash.

        Raises: ArtefactError in one sentence that says what does not fit.
        """
        path = Path(folder)
        try:
            contents = read_folder(path, (RECORD, TENSORS), MOST)
        except ValueError as error:
            raise ArtefactError(f"{shown(str(path))} is no path of a folder ({error}).") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        artefact = Artefact.read(contents, str(path))
        return replace(artefact, recipe=resolved(artefact.recipe, path))

    @staticmethod
    def read(contents: Mapping[str, bytes], path: str) -> "Artefact":
        """Read an artefact from the bytes of its files. Errors name the `path` that they come from."""
        data = contents[TENSORS]
        try:
            record = parse_record(contents[RECORD])
            if record.get("schema") != SCHEMA:
                raise ArtefactError(
                    f"the record has schema {shown(record.get('schema'))}; this version of Foreword reads schema "
                    f"{SCHEMA}."
                )
            if hashlib.sha256(data).hexdigest() != record.get("tensors_sha256"):
                raise ArtefactError(
                    f"{TENSORS} is truncated or was changed after it was written: its hash differs from the record's."
                )
            check_record(record)
            check_header(data, record["form"], record["value"])
            artefact = Artefact(
                value=unpack(record["form"], tensors_from_bytes(data), record["value"]),
                format=Format.from_json(record["format"]),
                fields=tuple(record["fields"]),
                trace=record.get("trace", {}),
                **{name: record[name] for name in PLAIN},
            )
            _check_whole(artefact)
            check_seal(record)
        except ForewordError as error:
            raise ArtefactError(f"{path} does not hold a whole artefact: {error}") from error
        except BROKEN as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ArtefactError(f"{path} does not hold what its record says ({reason}); train it again.") from error
        return artefact

    def _repr_html_(self) -> str:
        """Return what was learnt as a table, for notebooks."""
        answers = ", ".join(self.format.labels) or ("texts" if self.format.answers == "text" else "options of each row")
        rows = [
            ("method", f"{self.method}, seed {self.seed}"),
            ("form", self.form),
            ("made for", f"{self.model.get('name')} ({self.model.get('kind')})"),
            ("template", json.dumps(self.format.template.source, ensure_ascii=False)),
            ("answers", answers),
            ("parameters trained", f"{self.numbers_trained:,}"),
            ("bytes", f"{self.bytes_stored:,}"),
            *((name, value) for name, value in self.metrics.items() if isinstance(value, int | float | str)),
        ]
        return html_table(["artefact", ""], rows)

    def _card(self) -> str:
        """Return the README of the folder, for the person who is handed it."""
        imported = self.recipe.get("imported")
        decoding = self.format.decoding.to_json() if self.format.decoding else {}
        chat = self.format.chat_options.to_json()
        reasons = self.format.decoding is not None and self.format.answers != "text"
        origin = f"Imported from {imported}" if imported else "Made by Foreword"
        lines = [
            f"# A {self.form} prompt made by {self.method}"
            if self.value.as_prompt is self.value
            else f"# {self.method}",
            "",
            f"{origin} for `{self.model.get('name')}` ({self.model.get('kind')}), seed {self.seed}.",
            "",
            f"- Template: `{json.dumps(self.format.template.source, ensure_ascii=False)}`",
            *([f"- Text in: {', '.join(self.fields)}"] if self.fields else []),
            *([f"- Chat options: {json.dumps(chat, ensure_ascii=False)}"] if chat else []),
            f"- Answers: texts, decoded with {json.dumps(decoding, ensure_ascii=False)}"
            if self.format.answers == "text"
            else f"- Labels: {', '.join(self.format.labels) or 'each row brings its own options'}",
            *([f"- Reasons first: {json.dumps(decoding, ensure_ascii=False)}"] if reasons else []),
            f"- Size: {self.bytes_stored:,} bytes; {self.numbers_trained:,} numbers were trained",
            *[f"- {name}: {value}" for name, value in self.metrics.items()],
            "",
            'Use it with `foreword predict FOLDER "a text"`, measure it with `foreword evaluate FOLDER --data D`.',
            "",
            self._privacy(),
        ]
        return "\n".join(lines) + "\n"

    def _privacy(self) -> str:
        if self.value.privacy:
            return self.value.privacy
        if self.holds_rows:
            return "It holds rows of the training data, in clear, as demonstrations; whoever has it can read them."
        if self.numbers_trained:
            return (
                "It holds no training text in clear, but what was learnt from private data can leak it; treat it like "
                "the data."
            )
        if "search" in self.metrics:
            return "Its words were proposed by a model that was shown training rows, and may repeat some of theirs."
        return "It holds no training text: only the words of its template."


def _refuse_to_replace(target: Path) -> None:
    """Check that replacing a folder deletes an artefact at most.

    Raises: ArtefactError for a file, or for a folder that holds anything else.
    """
    if os.path.lexists(target) and not target.is_dir():
        raise ArtefactError(f"{target} is a file and no folder; nothing was written. Name a new folder.")
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if names and RECORD not in names:
        raise ArtefactError(
            f"{target} exists and is not an artefact; nothing was written. Name a new folder, or empty this one."
        )
    others = [name for name in names if name not in (TENSORS, RECORD, CARD) and not name.startswith(".")]
    if others:
        raise ArtefactError(
            f"{target} holds {others[0]!r} beside an artefact, which replacing the artefact would delete; nothing was "
            "written. Name a new folder, or move that away."
        )


def _unreadable(path: Path, error: OSError) -> ArtefactError:
    """Return the error that says why a folder cannot be read as an artefact."""
    if error.errno == errno.ENAMETOOLONG:
        return ArtefactError(f"{shown(str(path))} is too long for the name of a folder; give an artefact's folder.")
    if isinstance(error, PermissionError):
        return ArtefactError(f"{path} cannot be read ({_told(error)}); see who may read the folder and its files.")
    if os.path.lexists(present(path) / RECORD):
        return ArtefactError(f"{path} cannot be read ({_told(error)}). The artefact is damaged; train it again.")
    inside = sorted(str(p.parent) for pattern in ("*", "artefacts/*") for p in path.glob(f"{pattern}/{RECORD}"))
    hint = f"It holds artefacts: give one of them, {inside[0]} for example." if inside else ""
    return ArtefactError(
        f"{path} is not an artefact: it has no {RECORD}. {hint or 'Give the folder that `foreword train --out` wrote.'}"
    )


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _check_whole(artefact: Artefact) -> None:
    """Check that an artefact's parts fit each other. Raises: ArtefactError."""
    value, labels = artefact.value, artefact.format.labels
    if not artefact.any_model and not artefact.fingerprint:
        raise ArtefactError("the record has no fingerprint of the model that its tensors were made for.")
    if value.label_count not in (None, len(labels)):
        raise ArtefactError(f"it has scores for {value.label_count} labels, and its record names {len(labels)}.")
    forms = [form for _, form in value.parts(artefact.format)]
    absent = {field for form in [artefact.format, *forms] for field in form.template.fields} - {*artefact.fields}
    if absent:
        raise ArtefactError(f"its template has the field {min(absent)!r}, which the fields of its record do not name.")
    if any(form.labels != labels for form in forms):
        raise ArtefactError("the members of the ensemble have other labels than the ensemble.")


def made_of(method: str, config: Any, seed: int, hashes: Any, form: Any) -> str:
    """Return a method, its config and seed, the hashes of its rows and its first format, as canonical JSON.

    The moment of a chat template's clock is left out: the same job on another day is the same job.
    """
    return json.dumps([method, config, seed, hashes, without_clock(form)], sort_keys=True)


def check_fits(
    artefact: Artefact, fingerprint: Mapping[str, str], name: str, *, allow_other_weights: bool = False
) -> str | None:
    """Check that an artefact may be used with a model; return one warning line, or None.

    Hard prompts and word counts run on any model. For others tokenizer and shape must match, and the weights too unless
    allowed; another dtype or quantisation is worth a line. If the two are quantised differently, the weights count as
    the same if what quantisation keeps is the same (`models.base.Fingerprint`).

    Raises: ArtefactError that says which of the three differs.
    """
    if artefact.any_model:
        return None
    recorded = artefact.fingerprint
    for level, meaning in (("tokenizer", "another tokenizer"), ("shape", "a model of another shape")):
        if recorded[level] != fingerprint[level]:
            raise ArtefactError(
                f"This {artefact.form} artefact was made for {artefact.model.get('name')!r} and cannot be used with "
                f"{name!r}: that is {meaning}. Load the model it was made for, or train it again for this one."
            )
    before, now = _storage(recorded), _storage(fingerprint)
    rounded = before != now and bool(recorded.get("quantisation") or fingerprint.get("quantisation"))
    level = "kept" if rounded else "weights"
    same = recorded.get(level) == fingerprint.get(level)
    if not same and not allow_other_weights:
        raise ArtefactError(
            f"This {artefact.form} artefact was made for {artefact.model.get('name')!r}; {name!r} has the same shape "
            "but other weights. Pass --allow-other-weights to use it all the same, or train it again."
        )
    if not same:
        return (
            f"The artefact was made for other weights than those of {name!r}, as allowed; its scores may differ widely."
        )
    if before == now:
        return None
    unseen = "; quantised weights cannot be compared, so see that it is the same model" if rounded else ""
    return f"The artefact was made with {before} and is used with {now}; scores may differ slightly{unseen}."


def _storage(fingerprint: Mapping[str, str]) -> str:
    """Return how the weights are stored, in words: dtype and quantisation; older artefacts record the dtype alone."""
    quantisation = fingerprint.get("quantisation")
    return fingerprint["dtype"] + (f" ({quantisation})" if quantisation else "")
