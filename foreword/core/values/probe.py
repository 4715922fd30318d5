"""Hold a linear classifier over frozen features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from foreword.core.learnt import Learnt, Reader, check_width
from foreword.core.serialise import check_ranks, check_single
from foreword.core.shapes import Float, Tensor
from foreword.core.text import shown
from foreword.errors import ArtefactError

POOLS = ("answer", "mean", "head")  # what of a row a probe reads


@final
@dataclass(frozen=True, eq=False)
class Probe(Learnt, form="probe"):
    """Hold a linear classifier over frozen features; standardisation is folded in. `pool` is one of `POOLS`."""

    weight_CD: Float[Tensor, "C D"]
    bias_C: Float[Tensor, "C"]
    pool: str

    @property
    def label_count(self) -> int:
        return len(self.bias_C)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight_CD, "bias": self.bias_C}

    def record(self) -> dict[str, Any]:
        return {"pool": self.pool}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        return {"weight", "bias"}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Probe":
        check_ranks(tensors, weight=2, bias=1)
        check_single(tensors)
        if record["pool"] not in POOLS:
            raise ArtefactError(f"the probe reads {shown(record['pool'])}; it can read {', '.join(POOLS)}.")
        if len(tensors["weight"]) != len(tensors["bias"]):
            raise ArtefactError("the probe's weights and biases are of different numbers of labels.")
        return Probe(tensors["weight"], tensors["bias"], record["pool"])

    def check_model(self, lm: Reader) -> None:
        check_width(lm, self.weight_CD.shape[1])
