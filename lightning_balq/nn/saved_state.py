"""Check what a checkpoint holds for quantized layers before anything of it is taken over.

A checkpoint may come from anywhere. It is read as plain containers of tensors and numbers, and whatever could not have
been written by :func:`lightning_balq.nn.quantization_state` is refused by a :class:`ValueError` that names the key,
what was expected and what came.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from lightning_balq.nn.layers import clean_name

LARGEST = torch.finfo(torch.float32).max
"""Largest magnitude of a range or of what is learned: training may let them grow, and what was saved must load."""


def refuse(key: str, expected: str, value: Any) -> NoReturn:
    """Raise the :class:`ValueError` for what stands at ``key``."""
    raise ValueError(
        f"the checkpoint cannot be loaded: `{key}` must be {expected}, got {shown(value)}. The file is damaged or was "
        "edited: load another one, or only its `state_dict`"
    )


def shown(value: Any) -> str:
    """Describe a value of any kind and size in a few words."""
    if isinstance(value, Tensor):
        content = f" {value.item()}" if value.dim() == 0 and _is_readable(value) else ""
        return f"a tensor{content} of shape {tuple(value.shape)}, {value.dtype}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


def check_mapping(key: str, value: Any, required: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Return ``value`` if it is a dict with text as keys that has the required ones."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        refuse(key, "a dict with keys of type str", value)
    for name in required:
        if name not in value:
            refuse(key, f"a dict with the keys {', '.join(map(repr, required))}", f"one without {name!r}")
    return value


def check_version(key: str, value: Any, newest: int, writer: str) -> None:
    """Refuse what is no version, and one that is newer than ``newest``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(key, "a version, a positive int", value)
    if value > newest:
        raise ValueError(
            f"the checkpoint holds version {value} of the state of {writer}, this is version {newest}: install the "
            "lightning_balq that wrote it, or a newer one"
        )


def check_number(key: str, value: Any, low: float, high: float) -> None:
    """Refuse what is not a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        refuse(key, f"a number from {low:g} to {high:g}", value)


def check_names(key: str, value: Any) -> None:
    """Refuse what is not a list of text."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        refuse(key, "a list of str", value)


def check_inputs(key: str, inputs: Any, layers: set[str] | None) -> None:
    """Refuse a state of activation quantizers that is malformed, or of layers that the model does not have.

    Args:
        key: where it stands in the checkpoint.
        inputs: state of each input, by layer and name.
        layers: names of all layers of the model; ``None`` lets any name pass.
    """
    for name, parts in check_mapping(key, inputs).items():
        if layers is not None and name not in layers:
            refuse(key, f"state of layers that the model has, for example {sorted(layers)[-1]!r}", name)
        for part, state in check_mapping(f"{key}[{name!r}]", parts).items():
            place = f"{key}[{name!r}][{part!r}]"
            check_mapping(place, state, ("range", "signed", "batches"))
            _check_scalar(f"{place}['range']", state["range"], LARGEST)
            _check_scalar(f"{place}['batches']", state["batches"], LARGEST)
            signed = state["signed"]
            if not _is_readable(signed) or signed.shape != () or signed.dtype != torch.bool:
                refuse(f"{place}['signed']", "a bool tensor of shape ()", signed)


def check_learned(key: str, learned: Any, sections: tuple[str, ...], present: Mapping[str, Tensor]) -> None:
    """Refuse learned values that are malformed, or do not fit the learned parameters that the model has.

    Args:
        key: where they stand in the checkpoint.
        learned: values by section of the checkpoint and name.
        sections: names of the sections that may hold weights.
        present: learned parameters of the model by name; other values need only be tensors of numbers.
    """
    for section, values in check_mapping(key, learned).items():
        if section not in sections:
            refuse(f"{key}[{section!r}]", f"one of the sections {', '.join(map(repr, sections))}", section)
        for name, value in check_mapping(f"{key}[{section!r}]", values).items():
            place = f"{key}[{section!r}][{name!r}]"
            if not _is_readable(value) or not value.is_floating_point() or not _is_within(value, -LARGEST, LARGEST):
                refuse(place, f"a floating-point tensor of magnitudes up to {LARGEST:g}", value)
            own = present.get(clean_name(name))
            if own is not None and value.shape != own.shape:
                refuse(place, f"of shape {tuple(own.shape)}, as the model has it", value)


def _check_scalar(key: str, value: Any, high: float) -> None:
    if not _is_readable(value) or value.shape != () or not value.is_floating_point() or not _is_within(value, 0, high):
        refuse(key, f"a floating-point tensor of shape () from 0 to {high:g}", value)


def _is_readable(value: Any) -> bool:
    """Whether ``value`` is a tensor with values of its own, one after the other."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _is_within(value: Tensor, low: float, high: float) -> bool:
    if not value.numel():
        return True
    least, most = (float(bound) for bound in value.detach().double().aminmax())
    return math.isfinite(least) and math.isfinite(most) and low <= least and most <= high
