"""Hold what changes the model's own weights: weights, low-rank updates, and prompts that were learnt with weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from foreword.core.learnt import Learnt, Reader, kind_of, within
from foreword.core.prompts import PrefixPrompt, SoftPrompt
from foreword.core.record import are_distinct, are_texts, is_number
from foreword.core.shapes import Tensor
from foreword.core.text import shown
from foreword.errors import ArtefactError


@final
@dataclass(frozen=True, eq=False)
class Weights(Learnt, form="weights"):
    """Hold all or some of the model's own weights, by name, in the dtype they are stored in."""

    changes_weights = True
    by_name: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.by_name)

    def record(self) -> dict[str, Any]:
        return {"names": sorted(self.by_name)}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        return set(record["names"])

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Weights":
        if sorted(tensors) != record["names"]:
            raise ArtefactError("the names of the weights differ from the record's.")
        return Weights(dict(tensors))

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.by_name

    def check_model(self, lm: Reader) -> None:
        weights = lm.named_weights()
        check_shapes(lm, {name: tuple(tensor.shape) for name, tensor in self.by_name.items()})
        if len(self.by_name) == len(weights):
            return  # those of a whole model may be of another dtype; some of them beside the others may not
        odd = next((name for name, tensor in self.by_name.items() if tensor.dtype != weights[name].dtype), None)
        if odd is not None:
            raise ArtefactError(
                f"The artefact's {odd!r} are in {self.by_name[odd].dtype} and those of {lm.name!r} in "
                f"{weights[odd].dtype}; load the model with the dtype that the artefact was made with (--dtype)."
            )


@final
@dataclass(frozen=True, eq=False)
class LowRank(Learnt, form="low-rank"):
    """Hold updates `scale * up @ down` of named weight matrices (LoRA, Hu et al. 2021).

    `factors` maps a weight's name to `(down_RI, up_OR)`; `transposed` names the weights stored input-first (GPT-2).
    """

    changes_weights = True
    factors: dict[str, tuple[Tensor, Tensor]]
    scale: float
    transposed: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        parts = ("down", "up")
        return {f"{name}.{part}": t for name, pair in self.factors.items() for part, t in zip(parts, pair, strict=True)}

    def record(self) -> dict[str, Any]:
        return {"scale": self.scale, "transposed": list(self.transposed), "names": sorted(self.factors)}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        return {f"{name}.{part}" for name in record["names"] for part in ("down", "up")}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "LowRank":
        names, scale, transposed = record["names"], record["scale"], record["transposed"]
        if not are_texts(names) or not are_distinct(names) or not is_number(scale, -1e6, 1e6):
            raise ArtefactError(f"the update has the scale {shown(scale)}, or names that are no texts.")
        if not are_texts(transposed) or not set(transposed) <= set(names):
            raise ArtefactError("the update's transposed weights are not among its names.")
        factors = {}
        for name in names:
            down, up = tensors[f"{name}.down"], tensors[f"{name}.up"]
            if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.dtype != up.dtype:
                raise ArtefactError(f"the update of {name!r} has factors {list(down.shape)} and {list(up.shape)}.")
            factors[name] = (down, up)
        return LowRank(factors, float(scale), tuple(transposed))

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that it changes, with the update added in the update's precision."""
        changed = {}
        for name, (down, up) in self.factors.items():
            update = self.scale * (up @ down)
            weight = weights[name]
            update = update.T if name in self.transposed else update
            changed[name] = (weight.to(update.dtype) + update).to(weight.dtype)
        return changed

    def check_model(self, lm: Reader) -> None:
        shapes = {name: (up.shape[0], down.shape[1]) for name, (down, up) in self.factors.items()}
        check_shapes(lm, shapes | {name: shapes[name][::-1] for name in self.transposed})


@final
@dataclass(frozen=True, eq=False)
class Tuned(Learnt, form="tuned"):
    """Hold a prompt together with weights of the model that were learnt with it: for a model that is not frozen."""

    changes_weights = True
    prompt: SoftPrompt | PrefixPrompt
    weights: Weights

    @property
    def as_prompt(self) -> SoftPrompt | PrefixPrompt:
        return self.prompt

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"prompt.{name}": tensor for name, tensor in self.prompt.tensors().items()}
        return tensors | {f"model.{name}": tensor for name, tensor in self.weights.by_name.items()}

    def record(self) -> dict[str, Any]:
        return {**self.prompt.record(), "form": self.prompt.form, **self.weights.record()}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        prompt = {f"prompt.{name}" for name in kind_of(record["form"]).tensor_names(record)}
        return prompt | {f"model.{name}" for name in record["names"]}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Tuned":
        prompt = kind_of(record["form"]).restore(within(tensors, "prompt."), record)
        weights = within(tensors, "model.")
        if sorted(weights) != record["names"] or not isinstance(prompt, SoftPrompt | PrefixPrompt):
            raise ArtefactError("the names of the weights, or the prompt beside them, differ from the record's.")
        return Tuned(prompt, Weights(weights))

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.weights.by_name

    def check_model(self, lm: Reader) -> None:
        self.prompt.check_model(lm)
        self.weights.check_model(lm)


def check_shapes(lm: Reader, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a model has weights of these names and shapes. Raises: ArtefactError that names one it lacks."""
    weights = lm.named_weights()
    for name, shape in shapes.items():
        wanted = tuple(weights[name].shape) if name in weights else None
        if wanted is None:
            raise ArtefactError(f"The artefact changes the weights {name[:200]!r}, which {lm.name!r} does not have.")
        if wanted != shape:
            raise ArtefactError(f"The artefact's {name!r} are of shape {shape}; {lm.name!r} has {wanted}.")
