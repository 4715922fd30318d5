"""Several devices on a machine that has one: tensors that say where they are, and operations that refuse to mix.

A `Placed` tensor holds its numbers on the CPU and calls itself one of cpu:1, cpu:2, ...; inside `devices()` every
operation sees to it that its tensors are together, as a GPU would, and new tensors are where they were asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = torch.device("cpu")
MOVES = {"aten::_to_copy", "aten::copy_"}
CPU_INDEX = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"}  # as on a GPU


class Placed(torch.Tensor):
    """Numbers on a device that is said to be another."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> "Placed":
        out = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=device
        )
        out.held = held
        return out

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Placed({tuple(self.shape)}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def devices() -> Iterator[None]:
    """New tensors made inside are where they were asked for."""
    with _Made(), _Computed():
        yield


class _Made(TorchFunctionMode):
    """`torch.tensor` alone makes its tensor without telling the dispatcher where."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor:
            return func(*args, **kwargs)
        where = kwargs.pop("device", None)
        made = func(*args, **kwargs)
        return made if where is None else made.to(where)


class _Computed(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    compared = args[:1] if name in CPU_INDEX else (args, kwargs)
    at = {t.device for t in tree_leaves(compared) if isinstance(t, torch.Tensor) and t.ndim}
    if len(at) > 1 and name not in MOVES:
        raise RuntimeError(f"{name} got tensors on several devices: {sorted(map(str, at))}")
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": HOST}
    plain = tree_map(lambda t: t.held if isinstance(t, Placed) else t, (args, kwargs))
    out = func(*plain[0], **plain[1])
    first = [t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Placed)]
    where = torch.device(target) if target is not None else next(iter(at - {HOST}), first[0] if first else HOST)
    if name == "aten::copy_":
        return args[0]
    return out if where == HOST else tree_map(lambda t: Placed(t, where) if isinstance(t, torch.Tensor) else t, out)


def place(module: nn.Module, device: str) -> None:
    """Put every parameter and buffer of a module on a device; what two modules share is put where it comes first."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is None or isinstance(tensor, Placed):
                    continue
                there = Placed(tensor.detach(), torch.device(device))
                table[name] = nn.Parameter(there, requires_grad=False) if table is part._parameters else there
