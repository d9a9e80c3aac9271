"""The libraries that write ONNX, imported when they are used and not before."""

import importlib
from typing import Any

import torch

_LEAST_TORCH = (2, 8)


def onnx_library(module: str = "") -> Any:
    """Return ``onnx`` or a module of it.

    Raises:
        ImportError: if it is not installed, naming what to install.
    """
    return _imported(f"onnx.{module}" if module else "onnx")


def torch_symbols() -> Any:
    """Return the module of torch that puts operators of any name into a graph under way.

    Raises:
        ImportError: if onnxscript, which torch exports with, is not installed, or torch is older than 2.8.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _LEAST_TORCH:
        raise ImportError(f"ONNX export needs torch 2.8 or newer, got {torch.__version__}", name="torch")
    _imported("onnxscript")
    return importlib.import_module("torch.onnx.ops")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"ONNX export needs the package {package}: pip install lightning-balq[onnx]", name=package
        ) from error
