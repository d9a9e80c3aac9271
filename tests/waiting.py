"""Notice where the host would wait for a GPU, on a GPU and, as far as it can be told from operations, on a CPU."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class NoReads(TorchDispatchMode):
    """Raises where the host would wait for a GPU: for a value, or for the size of a result."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_dim", "unique_consecutive")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if masked or name.startswith(self.WAIT):
            raise RuntimeError(f"{name} waits for the device")
        return func(*args, **kwargs or {})


@contextmanager
def without_waiting(device):
    """An operation that makes the host wait for the device raises."""
    if device == "cpu":
        with NoReads():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
