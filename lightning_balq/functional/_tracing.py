"""Who watches the operations that run now, and must see all of them."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Before torch 2.7 nothing tells an export from a compilation, so that both get what an export needs.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: True)


def is_traced() -> bool:
    """Whether ``torch.compile``, ``torch.export`` or ``torch.jit.trace`` records what runs."""
    if torch.compiler.is_compiling():
        return True
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # torch leaves it untyped
    return tracing


def is_compiled_for_running() -> bool:
    """Whether ``torch.compile`` does; an export, which must not depend on this package, does not count."""
    return torch.compiler.is_compiling() and not _is_exporting()


def has_tangent(tensor: Tensor) -> bool:
    """Whether a derivative is propagated forward through a tensor."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]  # torch leaves it untyped


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is memory and nothing else: no subclass, and not under a transform of :mod:`torch.func`."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
