"""Hold a pool of prompts, from which every row mixes one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from foreword.core.learnt import Learnt, Reader, check_width
from foreword.core.serialise import check_ranks
from foreword.core.shapes import Float, Tensor
from foreword.errors import ArtefactError


@final
@dataclass(frozen=True, eq=False)
class PromptPool(Learnt, form="pool", stored={"keys": "keys_KD", "values": "values_KPD"}):
    """Hold keys and soft prompts, from which every row mixes a prompt of its own (MetaPrompter, Jiang et al. 2023)."""

    keys_KD: Float[Tensor, "K D"]
    values_KPD: Float[Tensor, "K P D"]

    @property
    def length(self) -> int:
        return self.values_KPD.shape[1]

    @property
    def slots(self) -> int:
        return self.length

    def record(self) -> dict[str, Any]:
        return {"shape": list(self.values_KPD.shape)}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "PromptPool":
        keys, values = tensors["keys"], tensors["values"]
        check_ranks(tensors, keys=2, values=3)
        if list(values.shape) != record["shape"] or list(keys.shape) != [values.shape[0], values.shape[2]]:
            raise ArtefactError(
                f"the pool has keys {list(keys.shape)} and values {list(values.shape)}, which do not fit."
            )
        return PromptPool(keys, values)

    def check_model(self, lm: Reader) -> None:
        check_width(lm, self.values_KPD.shape[2])
