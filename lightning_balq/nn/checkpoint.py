"""Carry what a float model has no place for inside its checkpoints, so that these stay checkpoints of the float model.

Activation ranges, the state of the schedule, learned parameters, and how each layer is quantized travel in
``checkpoint["lightning_balq"]``; ``state_dict`` keeps the keys of the float model. The hooks sit on the module, where
full and weights-only checkpoints both pass, and are found by name: any root module that has ``on_save_checkpoint`` and
``on_load_checkpoint``, as a LightningModule does. Nothing is taken over from a checkpoint before all of it was checked
(see ``saved_state.py``).
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

from lightning_balq.nn.finite import WEIGHTS, check_checkpoint
from lightning_balq.nn.layers import STATE, clean_name, quantized_layers
from lightning_balq.nn.learned import begin_parameters, beginning_parameters, learned_parameters
from lightning_balq.nn.optimizer_state import check_optimizers, join_optimizers, split_optimizers
from lightning_balq.nn.saved_layers import float_reasons, layer_states
from lightning_balq.nn.saved_state import (
    check_inputs,
    check_learned,
    check_mapping,
    check_names,
    check_number,
    check_version,
)

Hook: TypeAlias = Callable[[dict[str, Any]], None]

KEY = "lightning_balq"
VERSION = 1

CHECKS = "_balq_load_checks"
"""Key in the ``__dict__`` of a root of what else checks a checkpoint before the model takes anything from it."""


def attach_checkpoint_hooks(model: nn.Module) -> None:
    """Make checkpoints of ``model`` carry the state of its quantized layers; harmless if done already."""
    # The root, and what a wrapper such as torch.compile holds in its place.
    for root in [module for name, module in model.named_modules() if not clean_name(name)]:
        for name, hook in _HOOKS.items():
            present = root.__dict__.get(name)
            if callable(getattr(type(root), name, None)) and not _is_ours(present, hook):
                root.__dict__[name] = functools.partial(hook, root, present)


def detach_checkpoint_hooks(model: nn.Module) -> None:
    """Undo :func:`attach_checkpoint_hooks`."""
    for name, hook in _HOOKS.items():
        attached = model.__dict__.get(name)
        if attached is not None and _is_ours(attached, hook):
            _, present = attached.args
            if present is None:
                del model.__dict__[name]
            else:
                model.__dict__[name] = present


def save_state(model: nn.Module, present: Hook | None, checkpoint: dict[str, Any]) -> None:
    """``on_save_checkpoint`` of ``model``: its own, then ours, which lets nothing be saved that is not finite."""
    _own_hook(model, present, "on_save_checkpoint")(checkpoint)
    check_checkpoint(model, checkpoint)
    checkpoint[KEY] = quantization_state(model)
    names = _learned_keys(model)
    if not names:
        return
    checkpoint[KEY]["optimizers"] = split_optimizers(checkpoint)
    checkpoint[KEY]["learned"] = {}
    checkpoint[KEY]["beginning"] = beginning_parameters(model)
    for section in WEIGHTS:
        weights = checkpoint.get(section)
        if isinstance(weights, dict):
            checkpoint[KEY]["learned"][section] = {
                key: value for key, value in weights.items() if clean_name(key) in names
            }
            checkpoint[section] = {key: value for key, value in weights.items() if clean_name(key) not in names}


def load_state(model: nn.Module, present: Hook | None, checkpoint: dict[str, Any]) -> None:
    """``on_load_checkpoint`` of ``model``: ours, then its own."""
    if KEY in checkpoint:
        state = checkpoint[KEY]
        check_quantization_state(model, state)
    for check in model.__dict__.get(CHECKS, {}).values():
        check(checkpoint)
    if KEY in checkpoint:
        load_quantization_state(model, state)
        begin_parameters(model, state.get("beginning", ()))
        names = _learned_keys(model)
        for section, values in state.get("learned", {}).items():
            if isinstance(checkpoint.get(section), dict):
                known = {key: value for key, value in values.items() if clean_name(key) in names}
                checkpoint[section] = checkpoint[section] | known
        if names:
            join_optimizers(checkpoint, state.get("optimizers", []))
    _own_hook(model, present, "on_load_checkpoint")(checkpoint)


def add_load_check(model: nn.Module, name: str, check: Hook) -> None:
    """Let ``check`` look at each checkpoint before ``model`` takes anything from it, until it is removed."""
    model.__dict__.setdefault(CHECKS, {})[name] = check


def remove_load_check(model: nn.Module, name: str) -> None:
    """Undo :func:`add_load_check`; harmless if there is no such check."""
    checks = model.__dict__.get(CHECKS, {})
    checks.pop(name, None)
    if not checks:
        model.__dict__.pop(CHECKS, None)


def _learned_keys(model: nn.Module) -> set[str]:
    """Keys under which ``state_dict()`` holds what is learned: one for each name of a layer that has several."""
    return {
        clean_name(f"{path}.{name}" if path else name)
        for path, layer in model.named_modules(remove_duplicate=False)
        if STATE in layer.__dict__
        for name in layer.__dict__[STATE].learned()
    }


_HOOKS: dict[str, Callable[..., None]] = {"on_save_checkpoint": save_state, "on_load_checkpoint": load_state}


def _is_ours(attached: Any, hook: Callable[..., None]) -> bool:
    return isinstance(attached, functools.partial) and attached.func is hook


def _own_hook(model: nn.Module, present: Hook | None, name: str) -> Hook:
    """The hook that ours stands in front of: one set on the instance, or that of the class."""
    hook: Hook = getattr(type(model), name).__get__(model) if present is None else present
    return hook


def quantization_state(model: nn.Module) -> dict[str, Any]:
    """State of the quantized layers of ``model`` beside its ``state_dict()``: plain containers of tensors and numbers.

    Example:
        >>> from lightning_balq import QuantizationConfig, quantize_
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> _ = quantize_(model, QuantizationConfig(activation_bits=2))
        >>> sorted(quantization_state(model)["inputs"]["1"]["input"])
        ['batches', 'range', 'signed']
        >>> quantization_state(model)["float"]
        {'0': 'first layer', '2': 'last layer'}
    """
    quantizers = {name: quantizer for name, _, quantizer in quantized_layers(model)}
    inputs = {
        name: {key: activation.state() for key, activation in quantizer.inputs.items() if activation.observing}
        for name, quantizer in quantizers.items()
    }
    blend = next((quantizer.schedule.blend for quantizer in quantizers.values()), 1.0)
    return {
        "version": VERSION,
        "blend": blend,
        "inputs": {name: value for name, value in inputs.items() if value},
        "layers": layer_states(model),
        "float": float_reasons(model),
        "zeros": _kept_zeros(model),
    }


def _kept_zeros(model: nn.Module) -> dict[str, list[str]]:
    """Weights whose exact zeros stay zero, by layer: pruned ones, whether their mask is still there or not."""
    found = {}
    for name, layer, state in quantized_layers(model):
        state.note_masks(layer)
        if state.pruned:
            found[name] = list(state.pruned)
    return found


def load_quantization_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Take over what :func:`quantization_state` returned; state of layers that are not quantized here is left out.

    Raises:
        ValueError: if a newer version of this package wrote it, or it is malformed. The model is then as it was.
    """
    check_quantization_state(model, state)
    zeros = state.get("zeros")  # older checkpoints do not tell
    for name, _, quantizer in quantized_layers(model):
        quantizer.schedule.set_blend(float(state["blend"]))
        if zeros is not None:
            quantizer.pruned = quantizer.told = tuple(key for key in zeros.get(name, []) if key in quantizer.weights)
        for key, value in state["inputs"].get(name, {}).items():
            if key in quantizer.inputs:
                quantizer.inputs[key].load_state(value)


def check_quantization_state(model: nn.Module, state: Any) -> None:
    """Raise :class:`ValueError` if ``state`` is not what :func:`quantization_state` writes, for a model like this.

    State of layers that are not quantized here passes, and of layers that the model does not have only if it says by
    ``strict_loading = False``, as a LightningModule can, that it takes what fits.
    """
    check_mapping(KEY, state, ("version",))
    check_version(f"{KEY}['version']", state["version"], VERSION, KEY)
    check_mapping(KEY, state, ("version", "blend", "inputs"))
    check_number(f"{KEY}['blend']", state["blend"], 0, 1)
    strict = getattr(model, "strict_loading", True) is not False
    layers = {clean_name(name) for name, _ in model.named_modules()} if strict else None
    check_inputs(f"{KEY}['inputs']", state["inputs"], layers)
    check_optimizers(f"{KEY}['optimizers']", state.get("optimizers", []))
    check_names(f"{KEY}['beginning']", state.get("beginning", []))
    for name, keys in check_mapping(f"{KEY}['zeros']", state.get("zeros", {})).items():
        check_names(f"{KEY}['zeros'][{name!r}]", keys)
    present = {name: parameter for name, parameter, _ in learned_parameters(model)}
    check_learned(f"{KEY}['learned']", state.get("learned", {}), WEIGHTS, present)
