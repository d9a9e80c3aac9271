"""The metadata of a packed file: a description without its tensors, as JSON, and back, believing nothing."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_balq import __version__
from lightning_balq.export.bits import packed_size, unpack_codes
from lightning_balq.export.description import (
    GRIDS,
    Description,
    QuantizedInput,
    QuantizedLayer,
    QuantizedWeight,
    join,
    own_shape,
)
from lightning_balq.functional._checks import MAX_BITS
from lightning_balq.nn.activation import ACTIVATION_RANGES, ACTIVATION_SIGNS

FORMAT = "lightning_balq.packed"
VERSION = 1
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.float16)} | {
    "bfloat16": torch.bfloat16
}
"""Types of quantized weights by name."""

CODES, SCALE, KEPT, PADDING, OTHER = "codes", "scale", "kept", "padding", "float"
"""Prefixes of the tensors of a file: ``codes:<key of a weight>`` and so on; all that is not quantized is ``float:``."""


def to_metadata(description: Description, shared: Mapping[str, str], ties: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a file.

    Args:
        description: of a model.
        shared: key of each quantized weight that has no tensors of its own, and of the weight that has them.
        ties: likewise for everything else.
    """
    layers = {name: _layer_entry(name, layer, shared) for name, layer in description.layers.items()}
    content = {"layers": layers, "ties": dict(ties), "float_layers": dict(description.reasons)}
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "lightning_balq": __version__,
        "content": json.dumps(content, allow_nan=False),
    }


def _layer_entry(name: str, layer: QuantizedLayer, shared: Mapping[str, str]) -> dict[str, Any]:
    weights = {
        key: {
            "bits": weight.bits,
            "shape": list(weight.codes.shape),
            "grid": weight.grid,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "method": weight.method,
            "groups": weight.groups,
            "padding_row": weight.padding_row,
            "pruned": weight.kept is not None,
            "tensors_of": shared.get(join(name, key)),
        }
        for key, weight in layer.weights.items()
    }
    inputs = {
        key: {"bits": i.bits, "range": i.range, "signed": i.signed, "mode": i.mode, "sign": i.sign}
        for key, i in layer.inputs.items()
    }
    return {"type": layer.type, "weights": weights, "inputs": inputs, "aliases": list(layer.aliases)}


def from_metadata(metadata: Mapping[str, str] | None, tensors: Mapping[str, Tensor]) -> Description:
    """Build the description that a file holds.

    Args:
        metadata: strings by name, whatever the file said.
        tensors: all of the file.

    Raises:
        ValueError: if anything is not as :func:`to_metadata` writes it; the message names the entry.
    """
    return _Reader(dict(tensors)).read(metadata or {})


@dataclass
class _Reader:
    """Takes tensors out as entries ask for them, so that what is left at the end belongs to nothing."""

    tensors: dict[str, Tensor]

    def read(self, metadata: Mapping[str, str]) -> Description:
        content = _Entry(_content(metadata), "the metadata")
        weights: dict[str, QuantizedWeight] = {}
        layers = {name: self._layer(name, entry, weights) for name, entry in content.mapping("layers").items()}
        if not layers:
            raise ValueError("the metadata holds no layer")
        reasons = content.mapping("float_layers")
        for name in reasons.value:
            reasons.text(name)
        ties = content.mapping("ties")
        others = {key.removeprefix(f"{OTHER}:"): key for key in self.tensors if key.startswith(f"{OTHER}:")}
        found = {key: self.tensors.pop(stored) for key, stored in others.items()}
        for key in ties.value:
            source = ties.text(key)
            if source not in others or key in found:
                raise ValueError(f"{key!r} is tied to {source!r}; expected a tensor of the file, and none of its own")
            found[key] = found[source]
        if self.tensors:
            raise ValueError(f"the tensor {min(self.tensors)!r} belongs to no entry of the metadata")
        return Description(layers, found, dict(reasons.value))

    def _layer(self, name: str, entry: Any, weights: dict[str, QuantizedWeight]) -> QuantizedLayer:
        layer = _Entry(entry, f"layer {name!r}")
        found = {}
        for key, value in layer.mapping("weights").items():
            where = join(name, key)
            if where in weights:
                raise ValueError(f"weight {where!r} is there twice")
            found[key] = weights[where] = self._weight(where, _Entry(value, f"weight {where!r}"), weights)
        inputs = {
            key: _input(_Entry(value, f"input {join(name, key)!r}")) for key, value in layer.mapping("inputs").items()
        }
        return QuantizedLayer(layer.text("type"), found, inputs, layer.texts("aliases"))

    def _weight(self, key: str, entry: "_Entry", weights: Mapping[str, QuantizedWeight]) -> QuantizedWeight:
        source = entry.optional("tensors_of", entry.text)
        if source is not None:
            if source not in weights:
                raise ValueError(f"{entry.name} has its tensors from {source!r}, which is no weight before it")
            return weights[source]
        bits = entry.integer("bits", 1, MAX_BITS)
        shape = entry.shape("shape")
        groups = entry.optional("groups", lambda field: entry.integer(field, 1, max(shape[:1], default=1)))
        if groups is not None and (len(shape) < 3 or shape[0] % groups):
            raise ValueError(f"{entry.name}: {groups} `groups` do not divide `shape` {list(shape)}")
        count = math.prod(shape)
        codes = self._take(CODES, key, torch.uint8, (packed_size(count, bits),))
        scale = self._scale(key, shape)
        kept = None
        own = own_shape(shape, groups)
        if entry.truth("pruned"):
            stream = self._take(KEPT, key, torch.uint8, (packed_size(count, 1),))
            kept = unpack_codes(stream, count, 1).bool().reshape(own)
        dtype = DTYPES[entry.choice("dtype", DTYPES)]
        row = entry.optional("padding_row", lambda field: entry.integer(field, 0, max(shape[:1], default=0) - 1))
        padding = None
        if row is not None:
            if len(shape) != 2:
                raise ValueError(f"{entry.name} has a `padding_row` and `shape` {list(shape)}; expected two dimensions")
            padding = self._take(PADDING, key, dtype, shape[1:]).clone()
        return QuantizedWeight(
            unpack_codes(codes, count, bits).reshape(shape),
            scale,
            bits,
            entry.choice("grid", GRIDS),  # type: ignore[arg-type]  # one of them
            dtype,
            entry.text("method"),
            groups,
            row,
            padding,
            kept,
        )

    def _scale(self, key: str, shape: tuple[int, ...]) -> Tensor:
        channels = shape[0] if shape else 1
        per_channel = self.tensors.get(f"{SCALE}:{key}", torch.empty(0)).shape == (channels,)
        scale = self._take(SCALE, key, torch.float32, (channels,) if per_channel else (1,)).clone()
        if not bool((scale.isfinite() & (scale >= 0)).all()):
            raise ValueError(f"the tensor '{SCALE}:{key}' holds a scale that is negative or not finite")
        return scale

    def _take(self, prefix: str, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        name = f"{prefix}:{key}"
        if name not in self.tensors:
            raise ValueError(f"the tensor {name!r} is missing")
        tensor = self.tensors.pop(name)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"the tensor {name!r} must be {dtype} of shape {shape}, as the metadata says, got {tensor.dtype} of "
                f"shape {tuple(tensor.shape)}"
            )
        return tensor


def _content(metadata: Mapping[str, str]) -> Any:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its metadata names the format {metadata.get('format')!r}; expected {FORMAT!r}")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"it has version {metadata.get('version')!r} of the format, this lightning_balq reads version {VERSION}: "
            "install the one that wrote it, or a newer one"
        )
    try:
        return json.loads(metadata.get("content", ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its metadata is not JSON: {error}") from None


def _input(entry: "_Entry") -> QuantizedInput:
    bits = entry.integer("bits", 1, MAX_BITS)
    range_, signed = entry.optional("range", entry.number), entry.optional("signed", entry.truth)
    if (range_ is None) != (signed is None):
        raise ValueError(f"{entry.name} has a `range` without `signed`, or the other way round")
    mode, sign = entry.choice("mode", ACTIVATION_RANGES), entry.choice("sign", ACTIVATION_SIGNS)
    return QuantizedInput(bits, range_, signed, mode, sign)


@dataclass
class _Entry:
    """A JSON object, read field by field."""

    value: Any
    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.value, dict):
            raise ValueError(f"{self.name} must be a JSON object, got {_short(self.value)}")

    def items(self) -> list[tuple[str, Any]]:
        return list(self.value.items())

    def mapping(self, field: str) -> "_Entry":
        return _Entry(self._get(field), f"`{field}` of {self.name}")

    def integer(self, field: str, smallest: int, largest: int) -> int:
        value = self._get(field)
        if type(value) is not int or not smallest <= value <= largest:
            self._fail(field, f"an integer from {smallest} to {largest}", value)
        return int(value)

    def number(self, field: str) -> float:
        value = self._get(field)
        is_number = type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max and value >= 0
        if not is_number or float(torch.tensor(float(value), dtype=torch.float32)) != value:
            self._fail(field, "a float32 number that is not negative", value)
        return float(value)

    def truth(self, field: str) -> bool:
        value = self._get(field)
        if not isinstance(value, bool):
            self._fail(field, "true or false", value)
        return bool(value)

    def text(self, field: str) -> str:
        value = self._get(field)
        if not isinstance(value, str):
            self._fail(field, "a string", value)
        return str(value)

    def texts(self, field: str) -> tuple[str, ...]:
        value = self._get(field)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self._fail(field, "a list of strings", value)
        return tuple(value)

    def choice(self, field: str, choices: Any) -> str:
        value = self.text(field)
        if value not in choices:
            self._fail(field, f"one of {sorted(choices)}", value)
        return value

    def shape(self, field: str) -> tuple[int, ...]:
        value = self._get(field)
        if not isinstance(value, list) or len(value) > 8 or not all(type(size) is int and size >= 0 for size in value):
            self._fail(field, "at most 8 sizes that are not negative", value)
        if math.prod(max(size, 1) for size in value) >= 2**62:
            self._fail(field, "sizes of a tensor that can exist", value)
        return tuple(value)

    def optional(self, field: str, read: Callable[[str], Any]) -> Any:
        return None if self._get(field) is None else read(field)

    def _get(self, field: str) -> Any:
        if field not in self.value:
            raise ValueError(f"{self.name} has no `{field}`")
        return self.value[field]

    def _fail(self, field: str, expected: str, value: Any) -> None:
        raise ValueError(f"`{field}` of {self.name} must be {expected}, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
