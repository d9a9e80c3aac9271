"""Balanced low-bit quantization-aware training for PyTorch Lightning."""

from lightning_balq import functional, metrics
from lightning_balq.callback import (
    BalancedQuantization,
    DoReFaQuantization,
    LSQQuantization,
    UniformQuantization,
)
from lightning_balq.nn import (
    BalancedQuantizer,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    QuantizationConfig,
    UniformQuantizer,
    quantize_,
    unquantize_,
)

__version__ = "0.1.0"

__all__ = [
    "BalancedQuantization",
    "BalancedQuantizer",
    "DoReFaQuantization",
    "DoReFaQuantizer",
    "LSQQuantization",
    "LSQQuantizer",
    "LearnedBalancedQuantizer",
    "QuantizationConfig",
    "UniformQuantization",
    "UniformQuantizer",
    "functional",
    "metrics",
    "quantize_",
    "unquantize_",
]
