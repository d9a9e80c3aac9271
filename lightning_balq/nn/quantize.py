"""Quantize the layers of a model in place, and undo it exactly."""

from collections.abc import Mapping

from torch import nn

from lightning_balq.nn.activation import ActivationQuantizer
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.checkpoint import attach_checkpoint_hooks, detach_checkpoint_hooks
from lightning_balq.nn.config import QuantizationConfig
from lightning_balq.nn.finite import check_layers
from lightning_balq.nn.forward import SlowPathEncoder, SlowPathEncoderLayer, input_names, layer_mixin
from lightning_balq.nn.layers import REASON, STATE, LayerQuantizer, clean_name, quantized_layers
from lightning_balq.nn.learned import add_learned_parameters, check_learnable, note_zeros, remove_learned_parameters
from lightning_balq.nn.learned_activation import LEARNED_RANGES, LearnedActivationQuantizer
from lightning_balq.nn.plan import LayerPlan, Plan, plan
from lightning_balq.nn.quantizer import LearnedScaleQuantizer
from lightning_balq.nn.schedule import Schedule
from lightning_balq.nn.states import state_names, state_quantizer
from lightning_balq.nn.swap import Swapped, restore_class, swap_class


def quantize_(model: nn.Module, config: QuantizationConfig | None = None) -> Plan:
    """Quantize the selected layers of ``model`` in place, from the next forward on.

    Each layer keeps its parameters, hooks and place; only its class changes, to a subclass that quantizes its weight
    and input and then computes what the layer computes. ``state_dict()`` keeps the keys and the float values. Layers
    that are quantized already in the same way are left alone, so that calling this twice is calling it once.

    Without Lightning, call ``update_ranges_(activation_quantizers(model))`` of :mod:`lightning_balq.nn` after each
    training batch if activation ranges are observed; the callback does so by itself.

    Args:
        model: any module, which may itself be a layer.
        config: what to quantize and how; 4-bit balanced weights by default.

    Returns:
        What was decided for each layer.

    Raises:
        TypeError: if ``model`` is not a module, or ``config`` not a configuration.
        ValueError: if the options do not fit the model, a layer is quantized already in another way, or a weight is
            not finite. The model is then as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = quantize_(model, QuantizationConfig(quantize_first_last=True))
        >>> [layer.name for layer in plan.quantized]
        ['0', '2']
        >>> unquantize_(model)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    config = QuantizationConfig() if config is None else config
    if not isinstance(config, QuantizationConfig):
        raise TypeError(
            f"`config` must be a QuantizationConfig or None, got {type(config).__name__}; weights quantized by q are "
            "QuantizationConfig(q), and a callback goes to a Trainer"
        )
    decided = plan(model, config)
    modules = {clean_name(name): module for name, module in model.named_modules()}
    schedule = next((state.schedule for _, _, state in quantized_layers(model)), Schedule())
    cache = next((state.cache for _, _, state in quantized_layers(model)), LevelCache())
    wanted = {
        layer.name: _layer_quantizer(modules[layer.name], layer, config, schedule, cache) for layer in decided.quantized
    }
    _check_unquantized(modules, wanted)
    for name, quantizer in wanted.items():
        check_learnable(name, modules[name], quantizer)
    check_layers((name, modules[name], quantizer) for name, quantizer in wanted.items())
    install_({modules[name]: quantizer for name, quantizer in wanted.items()})
    adopt_(model, schedule, cache)
    _note_reasons(modules, decided)
    return decided


def install_(quantizers: Mapping[nn.Module, LayerQuantizer]) -> None:
    """Quantize layers as their new state says; those that are quantized already are left alone."""
    for layer, quantizer in quantizers.items():
        if STATE not in layer.__dict__:
            swap_class(layer, layer_mixin(type(layer)))
            layer.__dict__[STATE] = quantizer
            note_zeros(layer, quantizer)
            add_learned_parameters(layer, quantizer)


def adopt_(model: nn.Module, schedule: Schedule, cache: LevelCache) -> None:
    """Make one model of its quantized layers: one schedule, one cache, and checkpoints that hold their state."""
    for _, layer, state in quantized_layers(model):
        state.schedule, state.cache = schedule, cache  # parts may have been quantized apart
        cache.watch(layer)
    _leave_fast_paths(model)
    attach_checkpoint_hooks(model)


def learns(decided: Plan, config: QuantizationConfig) -> bool:
    """Whether a model quantized as decided learns scales or ranges."""
    learned_range = config.activation_range in LEARNED_RANGES
    return any(
        any(isinstance(quantizer, LearnedScaleQuantizer) for quantizer in layer.quantizers.values())
        or (learned_range and layer.activation_bits is not None)
        for layer in decided.quantized
    )


def unquantize_(model: nn.Module) -> None:
    """Undo :func:`quantize_`: the layers are the float layers again, with the float weights as trained.

    Types, ``__dict__`` keys, parameters and their order, hooks and ``state_dict()`` are those of the float model.

    Args:
        model: any module; one without quantized layers is left alone.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> _ = quantize_(layer, QuantizationConfig(quantize_first_last=True))
        >>> unquantize_(layer)
        >>> type(layer) is nn.Linear
        True
    """
    for module in model.modules():
        state: LayerQuantizer | None = module.__dict__.pop(STATE, None)
        if state is not None:
            remove_learned_parameters(module, state)
        module.__dict__.pop(REASON, None)
        if isinstance(module, Swapped):
            restore_class(module)
        detach_checkpoint_hooks(module)


def _layer_quantizer(
    layer: nn.Module, decided: LayerPlan, config: QuantizationConfig, schedule: Schedule, cache: LevelCache
) -> LayerQuantizer:
    inputs = {}
    if decided.activation_bits is not None:
        for name in input_names(layer):
            kind = LearnedActivationQuantizer if config.activation_range in LEARNED_RANGES else ActivationQuantizer
            inputs[name] = kind(decided.activation_bits, config.activation_range, config.activation_sign)
    if decided.state_bits is not None:
        for name in state_names(layer):
            inputs[name] = state_quantizer(layer, decided.state_bits, config.activation_range)
    return LayerQuantizer(dict(decided.quantizers), inputs, schedule, cache)


def _note_reasons(modules: dict[str, nn.Module], decided: Plan) -> None:
    """Leave a note at each layer why it stays float, for those who ask later."""
    for layer in decided.layers:
        entries = modules[layer.name].__dict__
        if layer.reason and STATE not in entries:
            entries[REASON] = layer.reason
        else:
            entries.pop(REASON, None)


def _check_unquantized(modules: dict[str, nn.Module], wanted: dict[str, LayerQuantizer]) -> None:
    for name, quantizer in wanted.items():
        present: LayerQuantizer | None = modules[name].__dict__.get(STATE)
        if present is not None and present.settings() != quantizer.settings():
            raise ValueError(
                f"layer {name!r} is quantized already, as {present.settings()}, and cannot also be quantized as "
                f"{quantizer.settings()}; call `unquantize_(model)` first, or give the layer to one of the two"
            )


def _leave_fast_paths(model: nn.Module) -> None:
    for module in model.modules():
        if not isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            continue
        if any(STATE in part.__dict__ for part in module.modules()):
            layer = isinstance(module, nn.TransformerEncoderLayer)
            swap_class(module, SlowPathEncoderLayer if layer else SlowPathEncoder)
