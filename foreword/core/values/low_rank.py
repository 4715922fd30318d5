"""Hold low-rank updates of weight matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from foreword.core.learnt import Learnt, Reader
from foreword.core.record import are_distinct, are_texts, is_number
from foreword.core.shapes import Tensor
from foreword.core.text import shown
from foreword.core.values.weights import check_shapes
from foreword.errors import ArtefactError


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
