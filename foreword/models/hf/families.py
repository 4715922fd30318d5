"""Describe where each family keeps the parts that Foreword calls: the output head's transform, its rows, caps and
offsets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging import version
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from foreword.core.shapes import Float, Tensor
from foreword.errors import ModelError
from foreword.models.hf import storage

RELATIVE_CONTEXT = 512  # tokens that T5's checkpoints were trained on
ENDLESS = 10**6  # a tokenizer that knows no limit says a number above this

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


def _t5(model: nn.Module, hidden: Tensor) -> Tensor:
    config: Any = model.config
    return hidden * config.d_model**-0.5 if config.scale_decoder_outputs else hidden


@dataclass(frozen=True)
class Family:
    """Describe what differs between families.

    `transform` is what the output head does before its matrix. `after_pad` is true if positions start after the padding
    index. `seam` is False if attention does not go through transformers' attention interface. `relative` families have
    T5's bias by distance and no positions. `since` is the first transformers in which attention can be replaced, if
    that is newer than the oldest that Foreword takes.
    """

    kind: str
    transform: Transform = _identity
    after_pad: bool = False
    seam: bool = True
    relative: bool = False
    since: str = ""

    @property
    def readable(self) -> bool:
        """Return whether the installed transformers is new enough for the family."""
        return not self.since or version.parse(transformers.__version__) >= version.parse(self.since)


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

_SEQ2SEQ = {
    "t5": Family("seq2seq", _t5, relative=True, since="5.15.0"),
    "mt5": Family("seq2seq", relative=True, since="5.15.0"),
    "bart": Family("seq2seq"),
    "mbart": Family("seq2seq"),
}

FAMILIES: dict[str, dict[str, Family]] = {"masked": _MASKED, "causal": _CAUSAL, "seq2seq": _SEQ2SEQ}


def family_of(model_type: str, kind: str, name: str) -> Family:
    table = FAMILIES[kind]
    if model_type not in table:
        raise ModelError(
            f"{name} is of the family {model_type}, which Foreword does not read as a {kind} model; the "
            f"{kind} families are {', '.join(sorted(table))}: choose a model of one of them."
        )
    family = table[model_type]
    if not family.readable:
        raise ModelError(
            f"{name} is of the family {model_type}, whose attention can be replaced since transformers {family.since}, "
            f"and {transformers.__version__} is installed; install a newer one."
        )
    return family


def base_of(model: PreTrainedModel) -> nn.Module:
    """Return the model without its output head."""
    return model.base_model


def output_of(model: PreTrainedModel) -> tuple[Float[Tensor, "V D"], Float[Tensor, "V"] | None]:
    """Return the matrix of a plain output head and its bias (or None), read from wherever accelerate keeps them."""
    layer: Any = model.get_output_embeddings()
    bias = None if layer.bias is None else storage.tensor_of(layer, "bias")
    added = added_to(model)
    if added is not None:
        bias = added[0] if bias is None else bias + added[0]
    return storage.tensor_of(layer, "weight"), bias


def added_to(model: PreTrainedModel) -> Float[Tensor, "1 V"] | None:
    """Return what a model itself adds to its head's logits (BART's second bias), or None."""
    return model._buffers.get("final_logits_bias")


def softcap_of(model: PreTrainedModel) -> float | None:
    """Return the cap if the model squeezes its final logits into (-cap, cap), as Gemma does, else None."""
    return getattr(model.config, "final_logit_softcapping", None)


def offset_of(model: PreTrainedModel, family: Family) -> int:
    return model.config.pad_token_id + 1 if family.after_pad else 0


def context_of(model: PreTrainedModel, family: Family) -> int:
    return int(model.config.max_position_embeddings) - offset_of(model, family)


def source_context_of(model: PreTrainedModel, family: Family, tokenizer: Any) -> int:
    """Return the number of positions of an encoder-decoder model. A model with a bias by distance has no limit: for it,
    return the length that it was made for."""
    if not family.relative:
        return context_of(model, family)
    made = getattr(model.config, "n_positions", None) or int(min(tokenizer.model_max_length, ENDLESS))
    return RELATIVE_CONTEXT if made >= ENDLESS else int(made)


def opening_of(model: PreTrainedModel, name: str) -> tuple[int, ...]:
    """Return the ids that a decoder's text begins with: its start token, and the one that some checkpoints force after
    it.

    Raises: ModelError if the checkpoint does not say.
    """
    results = []
    for key in ("decoder_start_token_id", "forced_bos_token_id"):
        for source in (getattr(model, "generation_config", None), model.config):
            given = getattr(source, key, None)
            if given is not None:
                results.append(int(given))
                break
        if not results:
            raise ModelError(
                f"The checkpoint {name} does not say what its decoder begins with; set decoder_start_token_id in its "
                "config (T5's is the padding token, BART's the end of sequence)."
            )
    return tuple(results)


def cap(logits: Tensor, limit: float | None) -> Tensor:
    return logits if limit is None else torch.tanh(logits / limit) * limit
