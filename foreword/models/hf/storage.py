"""Read a model's tensors however they are stored, plain or quantised, in place or behind accelerate's hooks.

Nothing here imports a quantisation library or accelerate: a quantised tensor is read by torch's own protocol for
tensors made of others, and accelerate's hooks by the attributes that they set on modules.
"""

import copy
import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foreword.core.shapes import Tensor
from foreword.errors import ModelError

SAMPLE = 2**16  # values of a tensor that its fingerprint reads
CLOSE = 0.1  # of the change of a layer's output; layers that round their input as well stay below 0.03


def hooks_of(module: nn.Module) -> list[Any]:
    """Return accelerate's hooks of a module, which bring its inputs and its tensors to the device it runs on."""
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else list(vars(hook).get("hooks", (hook,)))


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module computes, which may not be the one that stores its tensors."""
    for hook in hooks_of(module):
        if getattr(hook, "execution_device", None) is not None:
            return torch.device(hook.execution_device)
    return next(chain(module.parameters(), module.buffers())).device


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer of a module, read from the CPU or the disk if accelerate keeps it there.

    Raises: ModelError if it is on the meta device and nothing says where its values are.
    """
    tensor = getattr(module, name)
    if tensor.device.type != "meta":
        return tensor
    for hook in hooks_of(module):
        if getattr(hook, "offload", False) and hook.weights_map is not None:
            return hook.weights_map[name]
    raise ModelError(
        f"The weight {name} of a {type(module).__name__} has no values: it is on the meta device and no hook of "
        "accelerate brings it from elsewhere; load the model with from_pretrained."
    )


def is_split(model: nn.Module) -> bool:
    """Return whether accelerate has put hooks on the model."""
    return any(hooks_of(module) for module in model.modules())


def waits(model: nn.Module) -> bool:
    """Return whether some weights are stored elsewhere until their layer runs."""
    return any(p.device.type == "meta" for p in model.parameters())


def is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not _made_of_others(tensor)


def _made_of_others(tensor: Tensor) -> bool:
    return getattr(type(tensor), "__tensor_flatten__", None) is not None


def can_dequantise(tensor: Tensor) -> bool:
    return _made_of_others(tensor)


def dequantised(tensor: Tensor) -> Tensor:
    return tensor if is_plain(tensor) else tensor.dequantize()


def quantisation_of(model: PreTrainedModel) -> str:
    """Return which library quantised a model and how, as "torchao Int8WeightOnlyConfig" or "gptq 4-bit"; empty for a
    plain model."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return ", ".join(sorted({type(p).__name__ for p in model.parameters() if not is_plain(p)}))
    record = config if isinstance(config, dict) else config.to_dict()
    method = record.get("quant_method", "unknown")
    named = record.get("quant_type")
    if isinstance(named, dict):
        kind = str(named["default"].get("_type", ""))
    elif record.get("load_in_4bit"):
        kind = f"4-bit {record.get('bnb_4bit_quant_type', '')}"
    else:
        kind = f"{8 if record.get('load_in_8bit') else record.get('bits', '?')}-bit"
    return f"{getattr(method, 'value', method)} {kind}".strip()


def plain_shapes(model: PreTrainedModel) -> dict[str, list[int]]:
    """Return names and shapes of the parameters that the model has unquantised.

    A quantised model packs several numbers in one, or keeps its matrices in buffers, and a split one may have lost
    which weights are tied; so the plain original is built again from its config, without any memory.
    """
    if quantisation_of(model) or is_split(model):
        config = copy.deepcopy(model.config)
        vars(config).pop("quantization_config", None)
        with torch.device("meta"):
            model = type(model)(config)
    return {name: list(p.shape) for name, p in model.named_parameters()}


def tensors_of(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that tells one model from another, by name and in the order of names, from wherever it is
    kept.

    For a plain model these are its parameters. A quantised one keeps much in buffers, and tensors made of others are
    yielded in parts.
    """
    stored = _stored(model)
    for name in sorted(stored if quantisation_of(model) else plain_shapes(model)):
        yield from _parts(name, _found(model, name, stored[name]))


def kept_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield, by name, the tensors that quantisation leaves as they are: the input embedding, norms and biases."""
    stored = _stored(model)
    embedding = model.get_input_embeddings()
    matrix = next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)
    for name, shape in sorted(plain_shapes(model).items()):
        if name in stored and (len(shape) == 1 or name == matrix):
            yield name, _found(model, name, stored[name])


def _stored(model: PreTrainedModel) -> dict[str, Tensor]:
    if not quantisation_of(model):
        return dict(model.named_parameters(remove_duplicate=False))
    # Not `state_dict()`: asked for it after a pass on a CPU, bitsandbytes damages its 4-bit layers.
    results = {}
    for path, module in model.named_modules():
        for own, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None and own not in module._non_persistent_buffers_set:
                results[f"{path}.{own}".lstrip(".")] = tensor
    return results


def _found(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    owner, _, own = name.rpartition(".")
    return tensor_of(model.get_submodule(owner), own) if tensor.device.type == "meta" else tensor


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if not _made_of_others(tensor):
        yield name, tensor
        return
    inner: Any = tensor
    for part in inner.__tensor_flatten__()[0]:
        yield from _parts(f"{name}.{part}", getattr(tensor, part))


def sample(tensor: Tensor) -> bytes:
    """Return evenly spaced values as bytes; floats are rounded to bf16, so that a cast to a wider type changes
    nothing."""
    flat = tensor.detach().flatten()
    values = flat[:: max(1, flat.numel() // SAMPLE)].cpu()
    if values.is_floating_point():
        values = values.to(torch.bfloat16).view(torch.int16)
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def require_weights(model: PreTrainedModel, name: str) -> None:
    """Raise a ModelError if the model's own weights cannot be trained or added to."""
    quantised = quantisation_of(model)
    if quantised:
        raise ModelError(
            f"The weights of {name} are quantised ({quantised}) and cannot be trained or added to; train a prompt or a "
            "prefix over them, or load the model unquantised."
        )
    if waits(model):
        raise ModelError(
            f"Some weights of {name} wait on the CPU or the disk until their layer runs and cannot be trained or added "
            "to; train a prompt or a prefix over them, or load the model where all of it fits."
        )


def without_gradient(model: PreTrainedModel) -> str | None:
    """Return the kind of quantised layer that passes no true gradient to its input, or None.

    Some libraries' layers cut the gradient without an error, always (activations quantised as well) or only after a
    pass without gradients. So one layer of each kind is tested: along a step, the gradient must tell how far the output
    moves.
    """
    asked: set[tuple[type, ...]] = set()
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        odd = [type(tensor) for tensor in own if not is_plain(tensor)]
        kind = (type(module), *odd)
        width = getattr(module, "in_features", None)
        if not odd or width is None or kind in asked:
            continue
        asked.add(kind)
        if not _gradient_holds(module, int(width), model.dtype):
            return type(module).__name__
    return None


def _gradient_holds(module: nn.Module, width: int, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    at, step = torch.randn(2, 3, width, generator=generator).to(device_of(module), dtype)
    with torch.no_grad():
        moved = module(at + step) - module(at)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaf = at.requires_grad_()
        try:
            (slope,) = torch.autograd.grad((module(leaf) * moved).sum(), leaf, allow_unused=True)
        except (RuntimeError, NotImplementedError):
            return False
    if slope is None:
        return False
    wanted = float(moved.double().square().sum())
    return abs(float((slope.double() * step.double()).sum()) - wanted) <= CLOSE * wanted
