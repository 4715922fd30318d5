"""Tiny random encoder-decoder models: heads that are not the width's share, unequal depths, every bias alive."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from foreword.core.inject import PrefixBatch, inject_prefix, inject_soft
from foreword.core.prompts import Bank
from foreword.models.base import EncoderSource, FrozenLM, Inputs
from foreword.models.hf import families
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from tests.models.zoo import VOCAB

PAD, START, END = 0, 0, 6  # as the byte tokenizer has them
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12, "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": START,
    "n_positions": 64,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "init_std": 0.3, "pad_token_id": PAD,
    "bos_token_id": 5, "eos_token_id": END, "decoder_start_token_id": END, "forced_eos_token_id": None,
}  # fmt: skip

CONFIGS: dict[str, Callable[[], Any]] = {
    "t5": lambda: transformers.T5Config(**T5, num_layers=2, num_decoder_layers=4),
    "t5-gated": lambda: transformers.T5Config(
        **T5, num_layers=4, num_decoder_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "mt5": lambda: transformers.MT5Config(**T5, num_layers=3, feed_forward_proj="gated-gelu"),
    "bart": lambda: transformers.BartConfig(**BART, encoder_layers=2, decoder_layers=4),
    "mbart": lambda: transformers.MBartConfig(**BART, encoder_layers=4, decoder_layers=2, scale_embedding=True),
}
FAMILIES = tuple(CONFIGS)


def of_config(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model that attends eagerly; one-dimensional weights and biases are moved off their zeros and ones."""
    family = families.FAMILIES["seq2seq"][config.model_type]
    if not family.readable:
        pytest.skip(f"{config.model_type} needs transformers {family.since}")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
            elif "relative_attention_bias" in name:
                parameter.copy_(torch.randn_like(parameter))
            elif name.endswith((".q.weight", ".k.weight")):
                parameter *= 1.5
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn_like(buffer))
    return model.to(dtype).eval()


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> transformers.PreTrainedModel:
    return of_config(CONFIGS[family](), dtype, seed)


@functools.cache
def frozen(family: str, dtype: torch.dtype = torch.float32) -> FrozenLM:
    return wrap(build(family, dtype), byte_tokenizer("seq2seq"))


def logits(model: Any, source: Sequence[int], target: Sequence[int], source_mask: Tensor | None = None) -> Tensor:
    """(S, V): the library's own forward over one unpadded row; the encoder's mask may be given as 4-D."""
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=torch.tensor([source]), attention_mask=source_mask)
        out = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([target]))
    return out.logits[0]


def inputs_of(
    lm: FrozenLM,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    bank: Bank | None = None,
    task_B: Tensor | None = None,
    slots: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None = None,
    extra: int = 0,
) -> tuple[Inputs, PrefixBatch | None]:
    """Rows padded on the right by `extra` columns more than needed, every position of the decoder read."""
    task_B = torch.arange(len(sources)) if task_B is None else task_B

    def padded(rows: Sequence[Sequence[int]], own: Sequence[Sequence[int]] | None) -> tuple[Tensor, Tensor]:
        total = max(map(len, rows)) + extra
        ids_BS, slot_BS = torch.full((len(rows), total), 7), torch.full((len(rows), total), -1)
        attend_BS = torch.zeros(len(rows), total, dtype=torch.bool)
        for b, row in enumerate(rows):
            ids_BS[b, : len(row)], attend_BS[b, : len(row)] = torch.tensor(row), True
            if own is not None:
                slot_BS[b, : len(row)] = torch.tensor(own[b])
        embed_BSD = lm.embed(ids_BS)
        if bank is not None:
            embed_BSD = inject_soft(bank, task_B, slot_BS, embed_BSD)
        return embed_BSD, attend_BS

    source = EncoderSource(*padded(sources, None if slots is None else slots[0]))
    embed_BSD, attend_BS = padded(targets, None if slots is None else slots[1])
    position_BS = torch.arange(attend_BS.shape[1]).expand(attend_BS.shape)
    prefix = None if bank is None else inject_prefix(bank, task_B, lm.dtype)
    return Inputs(embed_BSD, attend_BS, position_BS, position_BS, source=source), prefix


def read(lm: FrozenLM, inputs: Inputs, prefix: PrefixBatch | None = None) -> list[Tensor]:
    """The logits at every real position of each row's decoder, through Foreword."""
    hidden_BRD = lm.hidden_at(inputs, prefix)
    flat = lm.piece_logits(hidden_BRD.flatten(0, 1), torch.arange(VOCAB))
    rows = flat.unflatten(0, hidden_BRD.shape[:2])
    return [row[own] for row, own in zip(rows, inputs.attend_BS, strict=True)]
