"""Quantizers as pure tensor functions: no state, no module, no Lightning.

Where a line belongs: ``balanced`` and ``uniform`` turn weights into codes; ``scale`` chooses the step of the grid;
``grid`` turns codes into levels and carries the gradient; ``activation`` quantizes activations, ``recurrent`` the
hidden states of recurrent layers; ``lsq`` and ``pact`` are those whose scale or range is learned; ``statistics``
measures how codes are used.
"""

from lightning_balq.functional.activation import (
    activation_codes,
    activation_fake_quantize,
    activation_observation,
    activation_scale,
)
from lightning_balq.functional.balanced import balanced_codes, balanced_fake_quantize, balanced_thresholds
from lightning_balq.functional.grid import dequantize, straight_through
from lightning_balq.functional.lsq import (
    lsq_activation_fake_quantize,
    lsq_codes,
    lsq_fake_quantize,
    lsq_initial_scale,
    lsq_scale,
    scaled_fake_quantize,
)
from lightning_balq.functional.pact import pact_fake_quantize
from lightning_balq.functional.recurrent import recurrent_fake_quantize
from lightning_balq.functional.scale import least_squares_scale, max_scale, mean_scale
from lightning_balq.functional.statistics import (
    bin_utilization,
    code_histogram,
    effective_bitwidth,
    imbalance,
    quantization_error,
)
from lightning_balq.functional.uniform import (
    dorefa_codes,
    dorefa_fake_quantize,
    uniform_codes,
    uniform_fake_quantize,
    uniform_scale,
)

__all__ = [
    "activation_codes",
    "activation_fake_quantize",
    "activation_observation",
    "activation_scale",
    "balanced_codes",
    "balanced_fake_quantize",
    "balanced_thresholds",
    "bin_utilization",
    "code_histogram",
    "dequantize",
    "dorefa_codes",
    "dorefa_fake_quantize",
    "effective_bitwidth",
    "imbalance",
    "least_squares_scale",
    "lsq_activation_fake_quantize",
    "lsq_codes",
    "lsq_fake_quantize",
    "lsq_initial_scale",
    "lsq_scale",
    "max_scale",
    "mean_scale",
    "pact_fake_quantize",
    "quantization_error",
    "recurrent_fake_quantize",
    "scaled_fake_quantize",
    "straight_through",
    "uniform_codes",
    "uniform_fake_quantize",
    "uniform_scale",
]
