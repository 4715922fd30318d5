"""Build the parts of `foreword.models.tiny` that need transformers."""

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
    T5Config,
    T5ForConditionalGeneration,
)

from foreword.models.base import Kind

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>")


def byte_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """Build a tokenizer of one token a byte; it puts [CLS] and [SEP] around a masked model's text, <s> before a causal
    one's, and </s> after a seq2seq one's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: at for at, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(BPE(vocab, [], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    ends: dict[Kind, tuple[str, str]] = {"masked": ("[CLS]", "[SEP]"), "causal": ("<s>", ""), "seq2seq": ("", "</s>")}
    first, last = ends[kind]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(),
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
    """Build a model whose weights are drawn under a forked generator, so that the caller's random state is as it
    was."""
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
        if kind == "seq2seq":
            return T5ForConditionalGeneration(_t5(tokenizer, width, layers, context))
        if kind == "masked":
            return BertForMaskedLM(BertConfig(**sizes))
        ends: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return LlamaForCausalLM(LlamaConfig(**sizes, **ends, num_key_value_heads=2))


def _t5(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, context: int) -> T5Config:
    """Return a config of unequal depths, and with heads that are not the width's share, as T5's own checkpoints may
    have."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    said: dict[str, Any] = {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": pad}
    said |= {"n_positions": context}
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4 + 4,
        d_ff=2 * width,
        num_layers=layers,
        num_decoder_layers=layers + 1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        initializer_factor=0.5,
        **said,
    )
