"""A random two-layer model and a byte tokenizer, for tests and docs: same seed, same weights, no file."""

from foreword.models.base import FrozenLM, Kind


def tiny(kind: Kind = "masked", *, seed: int = 0, width: int = 32, layers: int = 2, context: int = 512) -> FrozenLM:
    """A BERT (masked) or Llama (causal) of random weights over bytes; sentences in, chance out."""
    from foreword.models.hf import tiny as parts
    from foreword.models.hf.loading import wrap

    tokenizer = parts.byte_tokenizer(kind)
    return wrap(parts.random_model(kind, tokenizer, seed, width, layers, context), tokenizer, kind)
