"""What records the operations that run now, and must see all of them."""

import torch

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
