"""Rotate tokens row by row with embeddings whose frequencies depend on the length of the pass (LongRoPE, dynamic NTK).

The library takes the frequencies of a whole batch from its longest row. Here every row has those of its own length, so
that its result does not depend on the rows beside it. The library's own module computes them, once for each length.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foreword.core.shapes import Int, Tensor
from foreword.errors import ModelError
from foreword.models.hf.last_layer import with_module
from foreword.models.hf.storage import device_of

BY_LENGTH = ("longrope", "dynamic", "su")  # what transformers calls them, or contains in their names


class Rotary:
    """Hold a model's rotary module by its path, and frozen copies of it, one for each set of frequencies."""

    def __init__(self, module: nn.Module, path: str):
        self.path = path
        self._module: Any = copy.deepcopy(module)  # asking changes it, and the model's own may be a stranger's
        self._copies: dict[bytes, nn.Module] = {}
        self._set_of: dict[int, bytes] = {}
        self._lock = threading.Lock()  # a server asks from the thread that reads rows and from the one that owns them

    def set_of(self, length: int) -> bytes:
        """Return the frequencies of rows of this length, as a key: equal for lengths that are rotated alike."""
        if length not in self._set_of:
            with self._lock:
                _ask(self._module, length)
                key = b"".join(t.cpu().double().numpy().tobytes() for t in _frequencies(self._module))
                if key not in self._copies:
                    self._copies[key] = _frozen(self._module)
                self._set_of[length] = key
        return self._set_of[length]

    def at(self, key: bytes) -> nn.Module:
        return self._copies[key]


class RowRotary(nn.Module):
    """Take a rotary module's place for a pass, and rotate each token with the frequencies of its row's length.

    `length_B` holds the lengths of the rows, and `row_X` the row of each packed token. Without them the rows are those
    of `position_ids`, and each is as long as its last position says.
    """

    def __init__(self, rotary: Rotary, length_B: Sequence[int] | None = None, row_X: Int[Tensor, "X"] | None = None):
        super().__init__()
        self._rotary, self._length_B, self._row_X = rotary, length_B, row_X

    def forward(
        self, hidden: Tensor, position_ids: Int[Tensor, "_ _"], *args: Any, **keywords: Any
    ) -> tuple[Tensor, ...]:
        length_B = self._length_B or (position_ids.max(-1).values + 1).tolist()
        set_B = [self._rotary.set_of(length) for length in length_B]
        sets = list(dict.fromkeys(set_B))
        turned = [self._rotary.at(key)(hidden, position_ids, *args, **keywords) for key in sets]
        if len(sets) == 1:
            return turned[0]
        which_B = torch.tensor([sets.index(key) for key in set_B], device=position_ids.device)
        which = which_B[:, None] if self._row_X is None else which_B[self._row_X.to(which_B.device)][None]
        mixed = turned[0]
        for number, one in enumerate(turned):
            mixed = tuple(
                torch.where((which == number)[..., None], own, rest) for own, rest in zip(one, mixed, strict=True)
            )
        return mixed


def rotaries_of(model: PreTrainedModel, base: nn.Module, context: int, name: str, seamed: bool) -> tuple[Rotary, ...]:
    """Return the base model's rotary modules whose frequencies depend on the length of a row within the context; mostly
    none.

    Raises: ModelError if the config names such a rope and its modules cannot be called row by row.
    """
    results = []
    for path, module in base.named_modules():
        kinds = vars(module).get("rope_type")
        if kinds is None:
            continue
        rotary = Rotary(module, path)
        if _by_length(kinds) or rotary.set_of(1) != rotary.set_of(context):
            results.append(rotary)
    declared = getattr(model.config, "rope_parameters", None) or getattr(model.config, "rope_scaling", None)
    if (results and not seamed) or (not results and _by_length(declared)):
        raise ModelError(
            f"{name} has rotary embeddings that depend on the length of the pass ({declared}), in code of its own that "
            "Foreword cannot ask row by row: a row's answer would depend on the rows beside it. Load it without "
            "trust_remote_code, or choose another model."
        )
    return tuple(results)


def reading(
    module: nn.Module,
    rotaries: Sequence[Rotary],
    below: str = "",
    length_B: Sequence[int] | None = None,
    row_X: Int[Tensor, "X"] | None = None,
) -> Any:
    """Return a shallow copy of a module for one pass, in which each token is rotated with the frequencies of its row's
    length; `below` is the path of the base model within the module."""
    for rotary in rotaries:
        path = f"{below}.{rotary.path}".strip(".").split(".")
        module = with_module(module, path, RowRotary(rotary, length_B, row_X))
    return module


def _by_length(kinds: Any) -> bool:
    """Return whether a rope's type, or that of one kind of layers, is one of `BY_LENGTH`; a config's own parameters are
    taken too."""
    if isinstance(kinds, dict):
        own = [kinds[key] for key in ("rope_type", "type") if key in kinds]
        return any(map(_by_length, own or [kind for kind in kinds.values() if isinstance(kind, str | dict)]))
    return isinstance(kinds, str) and any(word == kinds or (word == "dynamic" and word in kinds) for word in BY_LENGTH)


def _layers(module: Any) -> list[dict[str, str]]:
    """Return the keywords that name each kind of layers with frequencies of its own."""
    kinds = module.rope_type
    return [{"layer_type": layer} for layer in kinds] if isinstance(kinds, dict) else [{}]


@torch.no_grad()
def _ask(module: nn.Module, length: int) -> None:
    """Run the module on a row of this length, after a row of a single token, which undoes what a longer row has left
    behind."""
    device = device_of(module)
    probe = torch.zeros(1, 1, 1, device=device)
    for keywords in _layers(module):
        for position in (0, length - 1):
            module(probe, torch.tensor([[position]], device=device), **keywords)


def _frozen(module: Any) -> nn.Module:
    """Return a copy with the frequencies that the module has now, which no row changes."""
    frozen = copy.deepcopy(module)
    kinds = frozen.rope_type
    frozen.rope_type = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"
    return frozen


def _frequencies(module: nn.Module) -> Iterator[Tensor]:
    """Yield the frequencies in use, of every kind of layers, and what scales them."""
    for name, tensor in sorted(module.named_buffers()):
        if name.endswith("inv_freq") and "original" not in name and "long_inv_freq" not in name:
            yield tensor
    for name, value in sorted(vars(module).items()):
        if name.endswith("attention_scaling"):
            yield torch.tensor(float(value))
