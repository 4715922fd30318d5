"""`load` a model by name or folder, `wrap` one that is already in memory. Transformers is imported only when called."""

from pathlib import Path
from typing import Any

import torch

from foreword.core.arguments import checked
from foreword.errors import ConfigError
from foreword.models.base import FrozenLM, Kind

EMBEDDED: dict[str, Kind] = {"foreword-mini": "masked", "foreword-mini-causal": "causal"}
TINY: dict[str, Kind] = {
    "foreword-tiny": "masked", "foreword-tiny-causal": "causal", "foreword-tiny-seq2seq": "seq2seq"
}  # fmt: skip


@checked
def load(
    name_or_path: str | Path,
    *,
    kind: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    device_map: Any = None,
    quantise: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> FrozenLM:
    """Return a frozen model by hub name, folder or embedded name.

    `kind` is read from the checkpoint where it is None. `dtype` None keeps the stored one, except for the embedded
    model, which is read as fp32. `quantise` is "int8", "int4" (four bits a weight, each in a byte of its own) or a
    quantisation config of transformers; a checkpoint that is quantised already needs none. The other options go to
    transformers as they are; code from the hub runs only when `trust_remote_code` is set.
    """
    name = str(name_or_path)
    chosen = _kind(kind)
    _require_device(device)
    if name in TINY and quantise is not None:
        raise ConfigError(f"{name} is made in memory and is not quantised; choose foreword-mini or a checkpoint.")
    if name in TINY:
        from foreword.models.tiny import tiny

        return tiny(chosen or TINY[name], dtype=dtype, device=device)
    from foreword.models.hf import loading

    source: str | Path = name_or_path
    if name in EMBEDDED:
        source, chosen = loading.EMBEDDED, chosen or EMBEDDED[name]
        dtype = "float32" if dtype is None else dtype
    return loading.load(
        source,
        name,
        chosen,
        dtype=dtype,
        device=torch.device(device) if isinstance(device, int) else device,
        device_map=device_map,
        quantise=quantise,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


@checked
def wrap(model: Any, tokenizer: Any, kind: str | None = None) -> FrozenLM:
    """Return a frozen model from a loaded transformers model and its fast tokenizer; the model itself is left
    unchanged."""
    from foreword.models.hf import loading

    return loading.wrap(model, tokenizer, _kind(kind))


def _require_device(device: str | int | torch.device | None) -> None:
    """Check that the device can be used. Raises: ConfigError if it cannot."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError, ValueError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(f"The device {device!r} cannot be used ({reason}); give cpu, cuda, cuda:1 or mps.") from error


def _kind(kind: str | None) -> Kind | None:
    match kind:
        case None | "masked" | "causal" | "seq2seq":
            return kind
    raise ConfigError(f"The kind {kind!r} is not known; use masked, causal or seq2seq, or leave it out.")
