"""Compile a deploy model, so that its integer layers run in int8 kernels."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_COMPILER = "torch._inductor.config"
"""Where weights are frozen. `torch.compile` takes the option too, but then fails on modules: it has to hold outside."""

_PASSES_OF_TORCH = "torch._inductor.fx_passes.quantization"
_PASSES_OF_TORCHAO = "torchao.quantization.pt2e.inductor_passes.x86"
_REGISTER = "_register_quantization_weight_pack_pass"
"""Torch calls its own when it freezes weights; it gave it up in version 2.14, for torchao to have."""


def compile_deploy(model: nn.Module) -> Callable[..., Any]:
    """Compile a deploy model, or one that was exported from it, with its weights frozen, so that it runs in int8.

    Args:
        model: what :func:`lightning_balq.export.to_deploy` returned, or ``torch.export.load(path).module()`` of a file
            made from that; what changes in it after the first call goes unnoticed.

    Returns:
        A function that runs it without gradients; its first call compiles, which needs a C++ compiler.

    Raises:
        ImportError: see :func:`enable_int8_kernels`.
    """
    enable_int8_kernels()
    config = importlib.import_module(_COMPILER)  # not at the top: it loads much that only this function needs
    compiled = torch.compile(model)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), config.patch(freezing=True):
            return compiled(*args, **kwargs)

    return run


@functools.cache
def enable_int8_kernels() -> None:
    """Let Inductor use int8 kernels where weights are frozen, also when it compiles ahead of time.

    From torch 2.14 on they are in torchao. Without them compiled code computes the same in float, several times slower.

    Raises:
        ImportError: if torch has them no longer and torchao is not installed: it comes with
            ``pip install lightning-balq[int8]``.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return  # no such kernels on this kind of processor
    if hasattr(importlib.import_module(_PASSES_OF_TORCH), _REGISTER):
        return
    try:
        passes = importlib.import_module(_PASSES_OF_TORCHAO)
    except ImportError as error:
        raise ImportError(
            f"torch {torch.__version__} compiles int8 layers to float: the passes that use int8 kernels are in "
            "torchao, pip install lightning-balq[int8]",
            name="torchao",
        ) from error
    getattr(passes, _REGISTER)()
