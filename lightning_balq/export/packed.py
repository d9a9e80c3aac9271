"""Packed files: quantized weights as k-bit codes and scales, everything else as it is, in one safetensors file."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from lightning_balq.export.bits import pack_codes
from lightning_balq.export.describe import describe
from lightning_balq.export.description import Description, QuantizedWeight, join
from lightning_balq.export.header import CODES, KEPT, OTHER, PADDING, SCALE, from_metadata, to_metadata
from lightning_balq.export.replacing import replacing


def pack(model: nn.Module, path: str | os.PathLike[str]) -> Description:
    """Write a quantized model to a file of the promised size.

    A weight of N values takes ``ceil(N * bits / 8)`` bytes and 4 for each scale; everything else is stored as it is.
    The file is written beside ``path`` and then renamed, so that an existing one is replaced only by a whole one.

    Args:
        model: quantized by a callback or by :func:`lightning_balq.quantize_`; it is left as it is.
        path: file to write, by convention ``*.safetensors``.

    Returns:
        What was written.

    Raises:
        ImportError: if safetensors is not installed: it comes with ``pip install lightning-balq[export]``.
        TypeError: if ``model`` is not a module.
        ValueError: if the model cannot be described (see :func:`describe`).
        OSError: if the file cannot be written.
    """
    _safetensors()  # not after a minute of work
    description = describe(model)
    write_packed(description, path)
    return description


def write_packed(description: Description, path: str | os.PathLike[str]) -> None:
    """Write a description to a file; see :func:`pack`."""
    save = _safetensors("torch")
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for key, weight in description.weights().items():
        if id(weight) in first:
            shared[key] = first[id(weight)]
        else:
            first[id(weight)] = key
            tensors |= _weight_tensors(key, weight)
    others, ties = _untied(description.tensors)
    tensors |= {f"{OTHER}:{key}": value for key, value in others.items()}
    metadata = to_metadata(description, shared, ties)
    with replacing(Path(path)) as draft:
        save.save_file(tensors, str(draft), metadata=metadata)


def read_packed(path: str | os.PathLike[str]) -> Description:
    """Read a file that :func:`pack` wrote.

    Nothing is executed, nothing is allocated but for what the file holds, and nothing is believed: a file that is
    damaged or was not written by :func:`pack` gives a :class:`ValueError` that names file and entry.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if the file is not a packed one, or not whole.
        OSError: if it cannot be read.
    """
    library = _safetensors()
    path = Path(path)
    with path.open("rb"):  # a missing file or a folder is an OSError that names it
        pass
    try:
        with library.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
    except Exception as error:
        # Its errors, those of torch about types that it does not know, and Python's about names that are no text.
        raise ValueError(f"{str(path)!r} is not a whole safetensors file: {error}") from error
    try:
        return from_metadata(metadata, {key: value.clone() for key, value in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a packed model: {error}") from error


def unpack(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the ``state_dict()`` of the float model, with quantized weights at their levels.

    It loads strictly into a float model: one whose weights are quantized, and whose activations are not.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if the file is not a packed one, or not whole.
        OSError: if it cannot be read.
    """
    description = read_packed(path)
    found = dict(description.tensors)
    for name, layer in description.layers.items():
        for key, weight in layer.weights.items():
            levels = weight.levels()
            found |= {join(place, key): levels for place in (name, *layer.aliases)}
    return found


def _weight_tensors(key: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    found = {
        f"{CODES}:{key}": pack_codes(weight.codes, weight.bits),
        f"{SCALE}:{key}": weight.scale.contiguous(),
    }
    if weight.kept is not None:
        found[f"{KEPT}:{key}"] = pack_codes(weight.kept.to(torch.uint8), 1)
    if weight.padding is not None:
        found[f"{PADDING}:{key}"] = weight.padding.contiguous()
    return found


def _untied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without those that are another one under a second key; and which these are."""
    first: dict[int, str] = {}
    own, ties = {}, {}
    for key, tensor in tensors.items():
        if id(tensor) in first:
            ties[key] = first[id(tensor)]
        else:
            first[id(tensor)] = key
            own[key] = tensor
    return own, ties


def _safetensors(module: str = "") -> ModuleType:
    """The library, or what to install; never imported before it is used."""
    import importlib

    try:
        return importlib.import_module(f"safetensors.{module}" if module else "safetensors")
    except ImportError as error:
        raise ImportError(
            "packed files need the package safetensors: pip install lightning-balq[export]", name="safetensors"
        ) from error
