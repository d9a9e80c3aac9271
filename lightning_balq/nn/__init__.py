"""Quantization of the layers of a model, without Lightning.

Where a line belongs: ``quantizer``, ``activation`` and ``learned_activation`` say how a tensor is quantized,
``schedule`` how far; ``learned`` keeps what is trained with the layers, and ``parameter_groups`` its place in an
optimizer; ``config`` holds the options and ``plan`` chooses layers by them; ``swap`` changes classes, ``weights`` finds
the weights of a layer, ``layers`` quantizes them, and ``forward`` runs the layer on them, with ``recurrent`` and
``cells``, whose hidden states are those of ``states``; ``quantize`` puts these together. ``checkpoint`` saves what
``state_dict()`` cannot, with how layers are quantized in the words of ``saved_layers``, ``optimizer_state`` keeps
learned parameters apart in it, ``saved_state`` checks it before it is loaded, and ``restore`` makes a float model the
quantized one again; ``finite`` finds NaN, ``float_reads`` weights that are read as float, ``monitor``, ``timing`` and
``pretrained`` look, ``report`` draws tables.
"""

from lightning_balq.nn.activation import ActivationQuantizer, settle_ranges_, update_ranges_
from lightning_balq.nn.checkpoint import load_quantization_state, quantization_state
from lightning_balq.nn.config import QuantizationConfig
from lightning_balq.nn.finite import NonFiniteError
from lightning_balq.nn.layers import activation_quantizers, quantized_layers
from lightning_balq.nn.learned import learned_parameters, restart_learning
from lightning_balq.nn.learned_activation import LearnedActivationQuantizer
from lightning_balq.nn.monitor import CodeMonitor, CodeStatistics
from lightning_balq.nn.parameter_groups import separate_groups
from lightning_balq.nn.plan import LayerPlan, Plan, plan
from lightning_balq.nn.quantize import quantize_, unquantize_
from lightning_balq.nn.quantizer import (
    BalancedQuantizer,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    UniformQuantizer,
    WeightQuantizer,
)
from lightning_balq.nn.restore import restore_

__all__ = [
    "ActivationQuantizer",
    "BalancedQuantizer",
    "CodeMonitor",
    "CodeStatistics",
    "DoReFaQuantizer",
    "LSQQuantizer",
    "LayerPlan",
    "LearnedActivationQuantizer",
    "LearnedBalancedQuantizer",
    "NonFiniteError",
    "Plan",
    "QuantizationConfig",
    "UniformQuantizer",
    "WeightQuantizer",
    "activation_quantizers",
    "learned_parameters",
    "load_quantization_state",
    "plan",
    "quantization_state",
    "quantize_",
    "quantized_layers",
    "restart_learning",
    "restore_",
    "separate_groups",
    "settle_ranges_",
    "unquantize_",
    "update_ranges_",
]
