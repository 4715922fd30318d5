"""Where each family keeps the parts that Foreword calls: the output head's transform, its rows, caps and offsets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from foreword.core.shapes import Float, Tensor
from foreword.errors import ModelError
from foreword.models.hf import stored

Transform = Callable[[nn.Module, Tensor], Tensor]


def _identity(model: nn.Module, hidden: Tensor) -> Tensor:
    return hidden


def _bert(model: nn.Module, hidden: Tensor) -> Tensor:
    return model.get_submodule("cls.predictions.transform")(hidden)


def _roberta(model: nn.Module, hidden: Tensor) -> Tensor:
    hidden = F.gelu(model.get_submodule("lm_head.dense")(hidden))
    return model.get_submodule("lm_head.layer_norm")(hidden)


def _distilbert(model: nn.Module, hidden: Tensor) -> Tensor:
    hidden = model.get_submodule("activation")(model.get_submodule("vocab_transform")(hidden))
    return model.get_submodule("vocab_layer_norm")(hidden)


def _electra(model: nn.Module, hidden: Tensor) -> Tensor:
    return model.get_submodule("generator_predictions")(hidden)


def _modernbert(model: nn.Module, hidden: Tensor) -> Tensor:
    return model.get_submodule("head")(hidden)


def _albert(model: nn.Module, hidden: Tensor) -> Tensor:
    hidden = model.get_submodule("predictions.dense")(hidden)
    return model.get_submodule("predictions.LayerNorm")(model.get_submodule("predictions.activation")(hidden))


@dataclass(frozen=True)
class Family:
    """What differs between families.

    `transform` is what the output head does before its matrix. `after_pad` says that positions start after the padding
    index. `seam` is False where attention does not go through transformers' attention interface.
    """

    kind: str
    transform: Transform = _identity
    after_pad: bool = False
    seam: bool = True


_MASKED = {
    "bert": Family("masked", _bert),
    "roberta": Family("masked", _roberta, after_pad=True),
    "xlm-roberta": Family("masked", _roberta, after_pad=True),
    "distilbert": Family("masked", _distilbert),
    "electra": Family("masked", _electra),
    "modernbert": Family("masked", _modernbert),
    "albert": Family("masked", _albert),
    "deberta-v2": Family("masked", _bert, seam=False),
}
_CAUSAL = {
    name: Family("causal")
    for name in (
        "gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"
    )
} | {"bert": Family("causal", _bert)}  # fmt: skip

FAMILIES: dict[str, dict[str, Family]] = {"masked": _MASKED, "causal": _CAUSAL}


def family_of(model_type: str, kind: str, name: str) -> Family:
    table = FAMILIES[kind]
    if model_type not in table:
        raise ModelError(
            f"{name} is of the family {model_type}, which Foreword does not read as a {kind} model; the "
            f"{kind} families are {', '.join(sorted(table))}: choose a model of one of them."
        )
    return table[model_type]


def base_of(model: PreTrainedModel) -> nn.Module:
    """The model without its output head."""
    return model.base_model


def output_of(model: PreTrainedModel) -> tuple[Float[Tensor, "V D"], Float[Tensor, "V"] | None]:
    """The output matrix and its bias. A quantised matrix is read back whole each time; most libraries leave it out.

    Raises: ModelError where there is none, or none that can be read by rows.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output head; load it as a masked or causal language model.")
    matrix = getattr(layer, "weight", None)
    if matrix is None or not (stored.is_plain(matrix) or stored.can_dequantise(matrix)):
        raise ModelError(
            f"The output head of {type(model).__name__} is a quantised {type(layer).__name__}, whose rows cannot be "
            "read one by one; quantise the model without its head, as its library does by default."
        )
    bias = None if layer.bias is None else stored.tensor_of(layer, "bias")
    return stored.dequantised(stored.tensor_of(layer, "weight")), bias


def softcap_of(model: PreTrainedModel) -> float | None:
    """Gemma squeezes its final logits into (-cap, cap)."""
    return getattr(model.config, "final_logit_softcapping", None)


def offset_of(model: PreTrainedModel, family: Family) -> int:
    return model.config.pad_token_id + 1 if family.after_pad else 0


def context_of(model: PreTrainedModel, family: Family) -> int:
    return int(model.config.max_position_embeddings) - offset_of(model, family)


def cap(logits: Tensor, limit: float | None) -> Tensor:
    return logits if limit is None else torch.tanh(logits / limit) * limit
