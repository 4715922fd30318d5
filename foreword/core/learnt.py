"""Define what every kind of learnt value can do. A new kind is one class with these methods, and is known by its form.

The three prompts are in `core.prompts`, the other kinds in `core.values`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from foreword.core.format import Format
from foreword.core.shapes import Float, Tensor
from foreword.errors import ArtefactError

KINDS: dict[str, type["Learnt"]] = {}  # every kind by its form; a class enters when it is defined


@runtime_checkable
class Reader(Protocol):
    """Describe what the check of a value asks of a model (`models.base.FrozenLM`)."""

    name: str
    dims: Any
    sites: Any

    def require_prefix(self) -> None: ...
    def named_weights(self) -> Mapping[str, Tensor]: ...


class Learnt(ABC):
    """Hold what a method learnt: named tensors, and a record of everything else.

    A class registers its form: `class Probe(Learnt, form="probe", stored={"weight": "weight_CD", "bias": "bias_C"})`.
    A model reads it with a prompt, other weights, or both; a kind without either has a scorer in `inference.scoring`.
    """

    form: ClassVar[str]
    stored: ClassVar[Mapping[str, str]]  # tensors by name, and the attributes that hold them
    needs_model: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = False  # then it shares no batch with other values
    rewrites_rows: ClassVar[bool] = False  # then `inference.scoring` has an encoder for its rows
    holds_rows: ClassVar[bool] = False  # training rows, in clear
    privacy: ClassVar[str | None] = None  # a sentence, if it holds something else of the training texts in clear

    def __init_subclass__(cls, form: str | None = None, stored: Mapping[str, str] | None = None) -> None:
        cls.stored = stored or {}
        if form is not None:
            assert form not in KINDS, f"two kinds have the form {form!r}"
            cls.form, KINDS[form] = form, cls

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by name. Those named `ids` are token ids; others are floats, which gradients reach."""
        return {name: getattr(self, attribute) for name, attribute in self.stored.items()}

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what else `restore` needs, as JSON."""

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        """Return the names that the tensors of a value with this record have."""
        return {*cls.stored}

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Learnt":
        """Return the value of these tensors, which are finite and of the right type, and this record.

        Raises: ArtefactError for a shape or a part of the record that does not fit. A part that is missing or of
        another kind may raise what Python does.
        """

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Learnt":
        """Return the value with other tensors of the same names and shapes."""
        return self.restore(tensors, self.record())

    @property
    def any_model(self) -> bool:
        """Return whether any model can read it: words of a template, or no model is needed."""
        return False

    @property
    def label_count(self) -> int | None:
        """Return how many labels it has scores for; None if it reads the label words of a format."""
        return None

    @property
    def as_prompt(self) -> "Prompt | None":
        """Return the prompt that a model reads it with."""
        return None

    @property
    def slots(self) -> int:
        """Return how many positions of a template's slots it fills."""
        return self.as_prompt.slots if self.as_prompt else 0

    @property
    def text_start(self) -> int:
        """Return how many positions of the context it takes before the text begins: those of a prefix."""
        return self.as_prompt.text_start if self.as_prompt else 0

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that it changes, by name, computed from those of the model; differentiable."""
        return {}

    def parts(self, form: Format) -> tuple[tuple["Learnt", Format], ...]:
        """Return the values that read each row, with their formats: the members of an ensemble, else itself."""
        return ((self, form),)

    def combined(self, scores: Sequence[Float[Tensor, "N C"]]) -> Float[Tensor, "N C"]:
        """Return the scores of the whole from those of its parts."""
        return scores[0]

    def with_formats(self, convert: Callable[[Format], Format]) -> "Learnt":
        """Return the value with the formats that it has converted."""
        return self

    def check_model(self, lm: Reader) -> None:
        """Check that its tensors fit a model, whatever its record says.

        Raises: ArtefactError that names what does not fit.
        """
        return

    def details(self) -> dict[str, Any]:
        """Return what `foreword show` says of it beside the artefact's own facts."""
        return {}


class Prompt(Learnt):
    """Hold what a frozen model reads before or in a row: one of the forms in `core.prompts`."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Return the number of its positions."""

    @property
    def as_prompt(self) -> "Prompt":
        return self

    @property
    def slots(self) -> int:
        return self.length

    @property
    def text_start(self) -> int:
        return 0


def kind_of(form: str) -> type[Learnt]:
    """Return the kind of a form. Raises: ArtefactError for an unknown form."""
    if form not in KINDS:
        raise ArtefactError(f"form {form[:80]!r} is unknown; known are {', '.join(KINDS)}.")
    return KINDS[form]


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_width(lm: Reader, width: int) -> None:
    """Check that vectors are as wide as the model's. Raises: ArtefactError."""
    if width != lm.dims.width:
        raise ArtefactError(f"The artefact has vectors of {width} numbers; {lm.name!r} has {lm.dims.width}.")
