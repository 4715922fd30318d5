"""Hold weights of the model itself, after fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from foreword.core.learnt import Learnt, Reader
from foreword.core.shapes import Tensor
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


def check_shapes(lm: Reader, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a model has weights of these names and shapes. Raises: ArtefactError that names one it lacks."""
    weights = lm.named_weights()
    for name, shape in shapes.items():
        wanted = tuple(weights[name].shape) if name in weights else None
        if wanted is None:
            raise ArtefactError(f"The artefact changes the weights {name[:200]!r}, which {lm.name!r} does not have.")
        if wanted != shape:
            raise ArtefactError(f"The artefact's {name!r} are of shape {shape}; {lm.name!r} has {wanted}.")
