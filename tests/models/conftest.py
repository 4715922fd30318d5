"""Tiny random models of every supported family: windows shorter than the texts, grouped heads, every bias alive."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

VOCAB = 61
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
        vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=64, pad_token_id=1
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


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model that attends eagerly; one-dimensional weights are moved off their zeros and ones."""
    torch.manual_seed(seed)
    auto = transformers.AutoModelForMaskedLM if family in MASKED else transformers.AutoModelForCausalLM
    model = auto.from_config(CONFIGS[family](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.to(dtype).eval()


@pytest.fixture
def make_model() -> Callable[..., transformers.PreTrainedModel]:
    return build
