"""Find NaN and infinity in what a quantized layer is made of, before they spread or are saved."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_balq.nn.layers import LayerQuantizer, clean_name, quantized_layers
from lightning_balq.nn.weights import peek_weight, whole

WEIGHTS = ("state_dict", "current_model_state")
"""Where a checkpoint holds weights: those of the model, and with averaging those in training."""

Part = tuple[str, str]
"""Name of a layer, and of something that it is made of."""


class NonFiniteError(ValueError):
    """A quantized layer holds NaN or infinity, which have no code."""

    def __init__(self, parts: Iterable[Part], consequence: str = "") -> None:
        by_layer: dict[str, list[str]] = {}
        for layer, part in parts:
            by_layer.setdefault(layer, []).append(part)
        name, held = next(iter(by_layer.items()))
        others = f" (one of {len(by_layer)} layers)" if len(by_layer) > 1 else ""
        super().__init__(
            f"{describe(name, held)}{others}{consequence}; expected finite values. Load a sound checkpoint, lower the "
            "learning rate or clip gradients"
        )


def describe(layer: str, parts: Iterable[str]) -> str:
    """Say which parts of a layer hold what they should not."""
    return f"{', '.join(parts)} of layer {layer!r} holds NaN or infinite values, which have no code"


def zero_if_finite(tensor: Tensor) -> Tensor:
    """Return a scalar that is 0 if all values are finite and NaN if not; one pass over them, and no copy."""
    if not _is_plain(tensor):  # sharded: not every operation is known for it
        return torch.tensor(0.0 if bool(whole(torch.isfinite(tensor).all())) else torch.nan)
    bounds = torch.stack(torch.aminmax(tensor.detach()))
    return (bounds - bounds).sum().to(torch.float32)


def non_finite(tensors: Mapping[Part, Tensor]) -> list[Part]:
    """Tell which of some tensors hold NaN or infinity; waits for the device once.

    Example:
        >>> non_finite({("a", "`weight`"): torch.ones(2), ("b", "`weight`"): torch.tensor([1.0, float("inf")])})
        [('b', '`weight`')]
    """
    flags = {
        part: zero_if_finite(tensor)
        for part, tensor in tensors.items()
        if tensor.numel() and tensor.is_floating_point() and tensor.device.type != "meta"
    }
    if not flags:
        return []
    device = next(iter(flags.values())).device
    seen = torch.stack([flag.to(device) for flag in flags.values()]).tolist()
    return [part for part, zero in zip(flags, seen, strict=True) if zero != 0]


def parts_of(name: str, layer: nn.Module, state: LayerQuantizer) -> dict[Part, Tensor]:
    """What must stay finite in a quantized layer: its quantized weights, what it learns, and the ranges it observes."""
    if any(is_lazy(parameter) for parameter in layer.parameters()):
        return {}
    parts = {(name, f"`{weight}`"): peek_weight(layer, weight) for weight in state.weights}
    learned = {key: layer._parameters.get(key) for key in state.learned()}
    parts |= {(name, f"`{key}`"): value for key, value in learned.items() if value is not None}
    return parts | _ranges(name, state)


def check_layers(layers: Iterable[tuple[str, nn.Module, LayerQuantizer]]) -> None:
    """Raise :class:`NonFiniteError` if one of some layers is not finite; the message names it."""
    found = non_finite({part: value for layer in layers for part, value in parts_of(*layer).items()})
    if found:
        raise NonFiniteError(found)


def check_checkpoint(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Raise :class:`NonFiniteError` if a checkpoint of ``model``, yet to be written, is not finite.

    All parameters of quantized layers count, in the weights of the model and in those that averaging keeps beside
    them. Weights that are sharded over ranks are not looked at: one rank would fail alone.
    """
    sections = [checkpoint[section] for section in WEIGHTS if isinstance(checkpoint.get(section), dict)]
    saved = [{clean_name(key): value for key, value in section.items()} for section in sections]
    tensors: dict[Part, Tensor] = {}
    for name, layer, state in quantized_layers(model):
        tensors |= _ranges(name, state)
        for key, parameter in layer.named_parameters():
            full = f"{name}.{clean_name(key)}" if name else clean_name(key)
            for index, weights in enumerate(saved):
                value = weights.get(full)
                if value is not None and _is_plain(value) and value.shape == parameter.shape:
                    tensors[name, f"`{key}`" + " beside its average" * (index > 0)] = value
    found = non_finite(tensors)
    if found:
        raise NonFiniteError(found, f", at step {checkpoint.get('global_step')}: no checkpoint was written")


def _is_plain(tensor: Any) -> bool:
    """Whether it is a tensor that is all here: no shard, and no parameter that has yet to get its shape."""
    return type(tensor) in (Tensor, nn.Parameter)


def _ranges(name: str, state: LayerQuantizer) -> dict[Part, Tensor]:
    inputs = {key: quantizer for key, quantizer in state.inputs.items() if quantizer.observing}
    return {(name, f"range of `{key}`"): quantizer.range for key, quantizer in inputs.items()}
