"""Read a learnt value from a tensor file and its record; every name, size, type and number is checked."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from foreword.core.learnt import Learnt, kind_of
from foreword.core.shapes import Tensor
from foreword.errors import ArtefactError

HEADER = 2**24  # bytes of a tensor file's own record of names and shapes
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_header(data: bytes, form: str, record: Mapping[str, Any]) -> None:
    """Check that a tensor file has the tensors of a value of this form, and no others, before any is made.

    Raises: ArtefactError that names what does not belong there.
    """
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(HEADER, len(data) - 8):
        raise ArtefactError(f"the tensor file has a header of {size:,} bytes; {HEADER:,} are allowed.")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    wanted = kind_of(form).tensor_names(record)
    absent, odd = sorted(wanted - header.keys()), sorted(header.keys() - wanted)
    if absent:
        raise ArtefactError(f"the tensor file has no {absent[0]!r}, which a value of the form {form!r} has.")
    if odd:
        raise ArtefactError(f"the tensor file has {odd[0][:80]!r}, which no value of the form {form!r} has.")


def unpack(form: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Learnt:
    """Return the value of these tensors and this record.

    Raises: ArtefactError for a tensor of another type, that is empty or not finite; and what `Learnt.restore` raises.
    """
    for name, tensor in tensors.items():
        ids = name.rpartition(".")[2] == "ids"
        if tensor.dtype not in ((torch.long,) if ids else FLOATS):
            raise ArtefactError(
                f"tensor {name!r} has dtype {tensor.dtype}; {'int64' if ids else 'a float'} was expected."
            )
        if not ids and not torch.isfinite(tensor).all():
            raise ArtefactError(f"tensor {name!r} holds NaN or infinity.")
        if not ids and tensor.ndim and not tensor.numel():
            raise ArtefactError(f"tensor {name!r} is empty: its shape is {list(tensor.shape)}.")
    return kind_of(form).restore(tensors, record)


def check_ranks(tensors: Mapping[str, Tensor], **ranks: int) -> None:
    """Check how many sizes tensors have. Raises: ArtefactError."""
    for name, rank in ranks.items():
        if tensors[name].ndim != rank:
            raise ArtefactError(
                f"tensor {name!r} has the shape {list(tensors[name].shape)}; {rank} sizes were expected."
            )


def check_single(tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors which no model reads are in single precision, as they are written. Raises: ArtefactError."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ArtefactError(f"tensor {name!r} has dtype {tensor.dtype}; float32 was expected.")
