"""Build a random two-layer model and a byte tokenizer, for tests and docs: same seed, same weights, no file."""

from typing import Any

from foreword.models.base import FrozenLM, Kind


def tiny(
    kind: Kind = "masked",
    *,
    seed: int = 0,
    width: int = 32,
    layers: int = 2,
    context: int = 512,
    dtype: Any = None,
    device: Any = None,
) -> FrozenLM:
    """Build a BERT (masked), Llama (causal) or T5 (seq2seq) of random weights over bytes; its answers are no better
    than chance."""
    from foreword.models.hf import tiny_checkpoints as parts
    from foreword.models.hf.loading import as_dtype, wrap

    tokenizer = parts.byte_tokenizer(kind)
    model: Any = parts.random_model(kind, tokenizer, seed, width, layers, context)
    if dtype not in (None, "auto"):
        model = model.to(as_dtype(dtype))
    if device is not None:
        model = model.to(device)
    return wrap(model, tokenizer, kind, "foreword-tiny" if kind == "masked" else f"foreword-tiny-{kind}")
