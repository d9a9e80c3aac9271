"""Whether the CUDA kernels can take a tensor, and where they are."""

import functools
import importlib
import os
import warnings
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from lightning_balq.kernels.native import SWITCH
from lightning_balq.kernels.plain import is_plain


def weight_kernels(weights: Sequence[Tensor]) -> ModuleType | None:
    """Return the module that quantizes these weights on their GPU, or ``None`` if they need the plain form."""
    return _module("weights") if weights and all(is_plain(weight, "cuda") for weight in weights) else None


def activation_kernels(x: Tensor) -> ModuleType | None:
    """Return the module that quantizes this activation on its GPU, or ``None`` if it needs the plain form."""
    return _module("activations") if is_plain(x, "cuda") else None


@functools.cache
def _module(name: str) -> ModuleType | None:
    reason = f"they are turned off by {SWITCH}=0" if os.environ.get(SWITCH, "1") == "0" else None
    if reason is None:
        try:
            return importlib.import_module(f"lightning_balq.kernels.cuda.{name}")
        except ImportError as error:
            reason = f"triton cannot be imported ({error}); install it"
    warnings.warn(
        f"lightning_balq runs without compiled CUDA kernels for {name}, and is slower: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    return None
