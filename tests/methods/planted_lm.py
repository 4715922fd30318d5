"""Real models whose next byte follows a law that a test states: no layer adds anything, the last byte alone counts."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foreword.models.base import FrozenLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap

WIDTH = 264  # a byte is one hot


def markov_lm(law: Mapping[str, Mapping[str, float]]) -> FrozenLM:
    """The model of `markov_parts`, frozen."""
    model, tokenizer = markov_parts(law)
    return wrap(model, tokenizer, kind="causal")


def markov_parts(law: Mapping[str, Mapping[str, float]]) -> tuple[LlamaForCausalLM, Any]:
    """A byte-level model and its tokenizer: after each byte of `law` comes another with the probability given there.

    "" is the end; after a byte without a law the text ends.
    """
    tokenizer = byte_tokenizer("causal")
    end = tokenizer.eos_token_id
    sizes = {"hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, num_key_value_heads=2, rms_norm_eps=1e-12, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double().eval()

    def id_of(text: str) -> int:
        return end if not text else tokenizer(text, add_special_tokens=False)["input_ids"][0]

    logit_VD = torch.full((len(tokenizer), WIDTH), -60.0, dtype=torch.float64)
    logit_VD[end] = 0.0
    for before, after in law.items():
        logit_VD[:, id_of(before)] = -60.0
        for text, chance in after.items():
            logit_VD[id_of(text), id_of(before)] = torch.tensor(chance).log()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight.fill_diagonal_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(logit_VD / WIDTH**0.5)  # a one-hot row leaves its norm with this length
    return model, tokenizer
