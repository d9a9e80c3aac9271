"""Which tensors a compiled form can take: plain memory, and nothing that watches or replaces what is done to it."""

import torch
from torch import Tensor

from lightning_balq.functional._tracing import has_memory, has_tangent, is_traced

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def is_plain(tensor: Tensor, device_type: str) -> bool:
    """Whether ``tensor`` is an ordinary floating-point tensor in the memory of a device of this type."""
    return (
        tensor.device.type == device_type
        and tensor.dtype in DTYPES
        and tensor.layout == torch.strided
        and not is_traced()
        and has_memory(tensor)
        and not has_tangent(tensor)
    )
