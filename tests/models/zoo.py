"""Tiny random models of every supported family: windows shorter than the texts, grouped heads, every bias alive."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from foreword.core.inject import PrefixBatch, inject_soft
from foreword.core.prompts import Bank
from foreword.models.base import FrozenLM, Inputs
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap

VOCAB = 263  # the byte tokenizer's
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 12}
WINDOW = {"sliding_window": 4}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "bert-decoder": lambda: transformers.BertConfig(**SIZES, is_decoder=True),
    "roberta": lambda: transformers.RobertaConfig(**SIZES),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=64, pad_token_id=1,
        initializer_range=0.3,
    ),
    "electra": lambda: transformers.ElectraConfig(**SIZES, embedding_size=24),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SIZES, local_attention=6, global_attn_every_n_layers=2, cls_token_id=2, sep_token_id=3, decoder_bias=True
    ),
    "albert": lambda: transformers.AlbertConfig(**SIZES, embedding_size=24),
    "deberta-v3": lambda: transformers.DebertaV2Config(
        **SIZES, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True,
        norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3,
        pad_token_id=1, bos_token_id=2, eos_token_id=3,
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=24, init_std=0.3, dropout=0.5,
    ),
    "llama": lambda: transformers.LlamaConfig(**DECODER),
    "mistral": lambda: transformers.MistralConfig(**DECODER, **WINDOW),
    "qwen2": lambda: transformers.Qwen2Config(
        **{k: v for k, v in DECODER.items() if k != "head_dim"}, **WINDOW, use_sliding_window=True, layer_types=MIXED
    ),
    "qwen3": lambda: transformers.Qwen3Config(**DECODER, **WINDOW, use_sliding_window=True, layer_types=MIXED),
    "gemma2": lambda: transformers.Gemma2Config(
        **DECODER, **WINDOW, layer_types=MIXED, query_pre_attn_scalar=12, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**DECODER, **WINDOW, layer_types=MIXED, query_pre_attn_scalar=12),
    "phi3": lambda: transformers.Phi3Config(
        **{k: v for k, v in DECODER.items() if k != "head_dim"}, **WINDOW, original_max_position_embeddings=64
    ),
}  # fmt: skip
MASKED = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "modernbert", "albert", "deberta-v3")
CAUSAL = tuple(family for family in CONFIGS if family not in MASKED)
WITHOUT_PREFIX = ("albert", "deberta-v3")
ENCODERS = tuple(family for family in MASKED if family not in WITHOUT_PREFIX)


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model that attends eagerly; one-dimensional weights are moved off their zeros and ones."""
    torch.manual_seed(seed)
    auto = transformers.AutoModelForMaskedLM if family in MASKED else transformers.AutoModelForCausalLM
    with warnings.catch_warnings():
        # DeBERTa of the oldest supported transformers scripts functions at import, which newer torch deprecates.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        model = auto.from_config(CONFIGS[family](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def logits(model: transformers.PreTrainedModel, ids: Sequence[int], mask: Any = None) -> Tensor:
    """(S, V): the library's own forward over one unpadded row."""
    ids_BS = torch.tensor([ids])
    with torch.no_grad():
        out = model(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS) if mask is None else mask)
    return out.logits[0]


def sentences(count: int, seed: int = 1, shortest: int = 3, longest: int = 14) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(4, VOCAB, (length,), generator=draw).tolist() for length in lengths]


def batch(
    lm: FrozenLM,
    rows: Sequence[Sequence[int]],
    side: str = "right",
    extra: int = 0,
    bank: Bank | None = None,
    slots: Sequence[Sequence[int]] | None = None,
) -> tuple[Inputs, list[slice]]:
    """Rows padded on one side, by `extra` more columns than needed, slots filled; every position is read."""
    total = max(len(row) for row in rows) + extra
    ids_BS, slot_BS = torch.full((len(rows), total), 7), torch.full((len(rows), total), -1)
    position_BS = torch.full((len(rows), total), 5)
    attend_BS = torch.zeros(len(rows), total, dtype=torch.bool)
    at = []
    for b, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(total - len(row), total)
        ids_BS[b, where], attend_BS[b, where] = torch.tensor(row), True
        position_BS[b, where] = torch.arange(len(row))
        if slots is not None:
            slot_BS[b, where] = torch.tensor(slots[b])
        at.append(where)
    ids_BS, slot_BS, position_BS, attend_BS = (t.to(lm.device) for t in (ids_BS, slot_BS, position_BS, attend_BS))
    embed_BSD = lm.embed(ids_BS)
    if bank is not None:
        embed_BSD = inject_soft(bank, torch.arange(len(rows), device=lm.device) % bank.size, slot_BS, embed_BSD)
    read_BR = torch.arange(total, device=lm.device).expand(len(rows), -1)
    return Inputs(embed_BSD, attend_BS, position_BS, read_BR), at


def read(lm: FrozenLM, inputs: Inputs, at: list[slice], prefix: PrefixBatch | None = None) -> list[Tensor]:
    """The logits at every real position of each row, through Foreword."""
    hidden_BRD = lm.hidden_at(inputs, prefix)
    flat = lm.piece_logits(hidden_BRD.flatten(0, 1), torch.arange(VOCAB))
    return [row[where] for row, where in zip(flat.unflatten(0, hidden_BRD.shape[:2]), at, strict=True)]


def gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference, in units of the fp32 tolerance's scale max(1, max |logit|)."""
    scale = max(1.0, *(float(t.detach().abs().max()) for t in theirs))
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True)) / scale


@functools.cache
def frozen(family: str, dtype: torch.dtype = torch.float32) -> FrozenLM:
    """A model of this family, wrapped; shared by the tests, since it is never changed."""
    return wrap(build(family, dtype), byte_tokenizer("causal"))
