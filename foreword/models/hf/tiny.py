"""The parts of `foreword.models.tiny` that need transformers."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from foreword.models.base import Kind

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>")


def byte_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """One token a byte; [CLS] and [SEP] around a masked model's text, <s> before a causal one's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: at for at, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(BPE(vocab, [], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    first, last = ("[CLS]", "[SEP]") if kind == "masked" else ("<s>", None)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last or ''}".strip(),
        special_tokens=[(token, vocab[token]) for token in (first, last) if token],
    )
    if kind == "masked":
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="<s>", eos_token="</s>"
    )


def random_model(
    kind: Kind, tokenizer: PreTrainedTokenizerFast, seed: int, width: int, layers: int, context: int
) -> PreTrainedModel:
    """Weights are drawn under a forked generator, so the caller's random state is as it was."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "masked":
            return BertForMaskedLM(BertConfig(**sizes))
        ends: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return LlamaForCausalLM(LlamaConfig(**sizes, **ends, num_key_value_heads=2))
