"""Recognise that memory ran out."""

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this is an allocation that failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "out of memory" in text
