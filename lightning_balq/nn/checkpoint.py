"""Carry what a float model has no place for inside its checkpoints, so that these stay checkpoints of the float model.

Activation ranges, the state of the schedule and learned parameters travel in ``checkpoint["lightning_balq"]``;
``state_dict`` keeps the keys of the float model. The hooks sit on the module, where full and weights-only checkpoints
both pass, and are found by name: any root module that has ``on_save_checkpoint`` and ``on_load_checkpoint``, as a
LightningModule does.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

from lightning_balq.nn.finite import WEIGHTS, check_checkpoint
from lightning_balq.nn.layers import clean_name, quantized_layers
from lightning_balq.nn.learned import begin_parameters, beginning_parameters, learned_parameters

Hook: TypeAlias = Callable[[dict[str, Any]], None]

KEY = "lightning_balq"
VERSION = 1


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
    names = {name for name, _, _ in learned_parameters(model)}
    if not names:
        return
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
        load_quantization_state(model, checkpoint[KEY])
        begin_parameters(model, checkpoint[KEY].get("beginning", ()))
        names = {name for name, _, _ in learned_parameters(model)}
        for section, values in checkpoint[KEY].get("learned", {}).items():
            if section in checkpoint:
                known = {key: value for key, value in values.items() if clean_name(key) in names}
                checkpoint[section] = checkpoint[section] | known
    _own_hook(model, present, "on_load_checkpoint")(checkpoint)


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
    }


def load_quantization_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Take over what :func:`quantization_state` returned; state of layers that are not quantized here is left out.

    Raises:
        ValueError: if a newer version of this package wrote it.
    """
    if state["version"] > VERSION:
        raise ValueError(
            f"the checkpoint holds version {state['version']} of the state of lightning_balq, this is version "
            f"{VERSION}: install the lightning_balq that wrote it, or a newer one"
        )
    for name, _, quantizer in quantized_layers(model):
        quantizer.schedule.set_blend(state["blend"])
        for key, value in state["inputs"].get(name, {}).items():
            if key in quantizer.inputs:
                quantizer.inputs[key].load_state(value)
