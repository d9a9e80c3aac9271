"""Whether the CUDA kernels can take a tensor, and where they are."""

import functools
import importlib
import os
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from lightning_balq.kernels.native import SWITCH
from lightning_balq.kernels.plain import is_plain

LEAST_TRITON = 3, 2
"""Oldest version in whose interpreter the kernels pass their tests."""


def weight_kernels(weights: Sequence[Tensor]) -> ModuleType | None:
    """Return the module that quantizes these weights on their GPU, or ``None`` if they need the plain form."""
    return _module("weights") if weights and all(map(_is_supported, weights)) else None


def activation_kernels(x: Tensor) -> ModuleType | None:
    """Return the module that quantizes this activation on its GPU, or ``None`` if it needs the plain form."""
    return _module("activations") if _is_supported(x) else None


def _is_supported(tensor: Tensor) -> bool:
    # Older GPUs have no bfloat16, and not every triton works around that.
    return is_plain(tensor, "cuda") and (tensor.dtype != torch.bfloat16 or _has_bfloat16(tensor.device))


@functools.cache
def _has_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _module(name: str) -> ModuleType | None:
    is_off = os.environ.get(SWITCH, "1") == "0"
    reason = f"they are turned off by {SWITCH}=0" if is_off else _why_not_triton()
    if reason is None:
        return importlib.import_module(f"lightning_balq.kernels.cuda.{name}")
    warnings.warn(
        f"lightning_balq runs without compiled CUDA kernels for {name}, and is slower: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _why_not_triton() -> str | None:
    try:
        version: str = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"triton cannot be imported ({error}); install it"
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TRITON:
        return f"triton {version} is older than 3.2, below which they compute something else; update torch"
    return None
