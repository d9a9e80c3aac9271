"""Which tensors a compiled form can take: plain memory, and nothing that watches or replaces what is done to it."""

import torch
from torch import Tensor

from lightning_balq.functional._tracing import is_traced


def is_plain(tensor: Tensor, device_type: str) -> bool:
    """Whether ``tensor`` is an ordinary floating-point tensor in the memory of a device of this type."""
    if (
        type(tensor) not in (Tensor, torch.nn.Parameter)
        or tensor.device.type != device_type
        or tensor.layout != torch.strided
        or not tensor.is_floating_point()
        or is_traced()
    ):
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # there is none under a transform of torch.func
        return False
    return True
