"""How layers are quantized, as plain values that a checkpoint holds, and back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from lightning_balq.nn.activation import ActivationQuantizer
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.forward import input_names
from lightning_balq.nn.layers import REASON, LayerQuantizer, clean_name, quantized_layers
from lightning_balq.nn.learned_activation import LEARNED_RANGES, LearnedActivationQuantizer
from lightning_balq.nn.quantizer import (
    BalancedQuantizer,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    UniformQuantizer,
    WeightQuantizer,
)
from lightning_balq.nn.schedule import Schedule
from lightning_balq.nn.states import state_names
from lightning_balq.nn.swap import original_class
from lightning_balq.nn.weights import transposed_groups, weight_names

METHODS: dict[str, type[WeightQuantizer]] = {
    cls.__name__: cls
    for cls in (BalancedQuantizer, UniformQuantizer, DoReFaQuantizer, LearnedBalancedQuantizer, LSQQuantizer)
}
"""Weight quantizers that can be built from what is saved of them."""


def layer_states(model: nn.Module) -> dict[str, Any]:
    """How each quantized layer of ``model`` is quantized, by its name.

    Example:
        >>> from lightning_balq import QuantizationConfig, quantize_
        >>> layer = nn.Linear(2, 2)
        >>> _ = quantize_(layer, QuantizationConfig(UniformQuantizer(3), quantize_first_last=True))
        >>> layer_states(layer)[""]["weights"]["weight"]
        {'method': 'UniformQuantizer', 'bits': 3, 'scale': 'max', 'granularity': 'per_tensor'}
    """
    return {
        name: {
            "type": original_class(layer).__name__,
            "groups": transposed_groups(layer),
            "weights": {key: quantizer_state(quantizer) for key, quantizer in state.weights.items()},
            "inputs": {
                key: {"bits": quantizer.bits, "range_mode": quantizer.range_mode, "sign": quantizer.sign}
                for key, quantizer in state.inputs.items()
            },
        }
        for name, layer, state in quantized_layers(model)
    }


def float_reasons(model: nn.Module) -> dict[str, str]:
    """Why layers of ``model`` that could be quantized stay float, by their names."""
    return {clean_name(name): m.__dict__[REASON] for name, m in model.named_modules() if REASON in m.__dict__}


def quantizer_state(quantizer: WeightQuantizer) -> dict[str, Any]:
    """Class and options of a weight quantizer; of one that is not of this package the class alone."""
    if type(quantizer) not in METHODS.values():
        return {"method": type(quantizer).__name__}
    options = {item.name: getattr(quantizer, item.name) for item in fields(quantizer)}
    return {"method": type(quantizer).__name__, **options}


def build_quantizer(state: Mapping[str, Any]) -> WeightQuantizer:
    """Build a weight quantizer from :func:`quantizer_state`.

    Raises:
        ValueError: if that is not possible.
    """
    options = dict(_mapping(state, "a weight quantizer"))
    method = options.pop("method", None)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"expected a method of {sorted(METHODS)}, got {method!r}: quantize the model by hand")
    try:
        return METHODS[method](**options)
    except TypeError as error:
        raise ValueError(f"{method} cannot be built from {options}: {error}") from error


def build_layer(
    name: str, layer: nn.Module, state: Mapping[str, Any], schedule: Schedule, cache: LevelCache
) -> LayerQuantizer:
    """Build the state of one layer from what :func:`layer_states` says of it.

    Raises:
        ValueError: if it does not fit the layer.
    """
    try:
        parts = _mapping(state, "the layer")
        weights = {key: build_quantizer(value) for key, value in _mapping(parts.get("weights"), "`weights`").items()}
        inputs = {key: _build_input(value) for key, value in _mapping(parts.get("inputs"), "`inputs`").items()}
    except ValueError as error:
        raise ValueError(f"what the checkpoint says of layer {name!r} cannot be understood: {error}") from error
    unknown = sorted(weights.keys() - set(weight_names(layer)))
    unknown += sorted(inputs.keys() - {*input_names(layer), *state_names(layer)})
    if unknown or not weights:
        raise ValueError(
            f"layer {name!r} is a {original_class(layer).__name__} without {unknown or 'quantized weights'}, in the "
            f"checkpoint a {parts.get('type')}; expected a model of the same architecture"
        )
    return LayerQuantizer(weights, inputs, schedule, cache)


def _build_input(state: Any) -> ActivationQuantizer:
    options = dict(_mapping(state, "an input"))
    kind = LearnedActivationQuantizer if options.get("range_mode") in LEARNED_RANGES else ActivationQuantizer
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"an input quantizer cannot be built from {options}: {error}") from error


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping with string keys, got {type(value).__name__}")
    return value
