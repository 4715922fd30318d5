"""Hold pools from which every row takes its own: soft prompts that it mixes, or examples that it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from foreword.core.demos import Example
from foreword.core.learnt import Learnt, Reader, check_width
from foreword.core.prompts import HardPrompt
from foreword.core.record import is_whole
from foreword.core.serialise import check_ranks
from foreword.core.shapes import Float, Tensor
from foreword.core.text import shown
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


@final
@dataclass(frozen=True, eq=False)
class Neighbours(Learnt, form="neighbours", stored={"embed": "embed_ND"}):
    """Hold a pool of examples; each row is shown the `count` nearest to it, the nearest last (Liu et al. 2022).

    `embed_ND` has rows of length 1, made by the model itself or by the `encoder` named, which reads `{field} {field}`.
    """

    rewrites_rows = True
    holds_rows = True
    examples: tuple[Example, ...]
    embed_ND: Float[Tensor, "N D"]
    count: int
    separator: str
    encoder: str | None = None

    @property
    def as_prompt(self) -> HardPrompt:
        return HardPrompt.empty()  # the rows bring their examples as words

    def record(self) -> dict[str, Any]:
        examples = [{"fields": dict(e.fields), "word": e.word} for e in self.examples]
        return {"examples": examples, "count": self.count, "separator": self.separator, "encoder": self.encoder}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Neighbours":
        embed_ND, examples, encoder = tensors["embed"], record["examples"], record["encoder"]
        fields = [e["fields"] for e in examples]
        texts = [record["separator"], *(text for e in examples for text in (*e["fields"].values(), e["word"]))]
        if not all(isinstance(text, str) for text in texts) or not isinstance(encoder, str | None):
            raise ArtefactError("the examples' texts, the separator and the encoder's name must be texts.")
        unlike = any(f.keys() != fields[0].keys() for f in fields)
        if embed_ND.ndim != 2 or len(examples) != len(embed_ND) or not examples or unlike:
            raise ArtefactError(
                f"{len(examples)} examples are recorded for embeddings of shape {list(embed_ND.shape)}."
            )
        if not is_whole(record["count"], 1):
            raise ArtefactError(f"each row is shown {shown(record['count'])} examples; it must be 1 or more.")
        restored = tuple(Example(dict(e["fields"]), e["word"]) for e in examples)
        return Neighbours(restored, embed_ND, record["count"], record["separator"], encoder)

    def details(self) -> dict[str, Any]:
        return {"pool": f"{len(self.examples)} examples, of which the {self.count} nearest are shown"}
