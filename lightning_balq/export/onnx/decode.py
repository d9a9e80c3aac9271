"""Packed weights, and the standard operators that make levels or integers of them.

Every byte is an index into a table of the values that its codes stand for, so runtimes that fold constants do it once,
when the file is loaded. Codes of 3, 5, 6 and 7 bits, which do not fill bytes, are stored as parts of 4, 2 and 1 bits,
whose values add up. (DequantizeLinear, which would be shorter, is fused by ONNX Runtime with a product after it, and
then rounds activations to 8 bits.)
"""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_balq.export.bits import pack_codes
from lightning_balq.export.description import Grid, QuantizedWeight, multiples
from lightning_balq.export.onnx.forms import WeightForm
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.nn.weights import swap_grouped

PARTS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Widths that a code of so many bits is split into, the lowest bits first; each divides 8."""

OFFSET = 128
"""Added to integers of 8 bits that are stored unsigned."""


def decode_levels(builder: GraphBuilder, weight: QuantizedWeight) -> str:
    """Emit the weight as its layer uses it, bit for bit :meth:`QuantizedWeight.levels`; float32."""
    return builder.once(("levels", weight), lambda: _levels(builder, weight))


def decode_integers(builder: GraphBuilder, weight: QuantizedWeight, form: WeightForm) -> str:
    """Emit the weight as the integers of a form, shape ``(inputs, outputs)`` as products take it.

    The inputs of a convolution are its taps and, within each, the channels.
    """
    return builder.once(("integers", weight, form), lambda: _integers(builder, weight, form))


def with_rows(weight: QuantizedWeight, rows: Tensor) -> QuantizedWeight:
    """The weight of other rows, or of the same ones in another order."""
    return replace(
        weight,
        codes=weight.codes[rows],
        scale=weight.scale if weight.scale.numel() == 1 else weight.scale[rows],
        kept=None if weight.kept is None else weight.kept[rows],
    )


def _levels(builder: GraphBuilder, weight: QuantizedWeight) -> str:
    codes, groups, shape = weight.codes, weight.groups, weight.shape
    scale = weight.scale
    wide = shape  # in which scales broadcast
    if groups is not None:
        codes = swap_grouped(codes, groups)
        wide = (groups, shape[0] // groups, *shape[1:])
    if scale.numel() > 1:
        ones = [1] * (len(codes.shape) - 1)
        scale = scale.reshape(-1, *ones) if groups is None else scale.reshape(groups, 1, -1, *ones[1:])
    values = builder.op("Reshape", _table_values(builder, codes, weight.bits, weight.grid), builder.integers(*wide))
    values = builder.op("Mul", values, builder.constant(scale))
    if wide != shape:
        values = builder.op("Reshape", values, builder.integers(*shape))
    if weight.padding_row is not None and weight.padding is not None:
        row = builder.constant(torch.tensor([[weight.padding_row]]))
        values = builder.op("ScatterND", values, row, builder.constant(weight.padding[None]))
    return values if weight.kept is None else builder.op("Mul", values, _mask(builder, weight.kept))


def _integers(builder: GraphBuilder, weight: QuantizedWeight, form: WeightForm) -> str:
    codes = _as_matrix(weight.codes)
    shape = builder.integers(*codes.shape)
    factor, offset = (1, 0) if form.kind == "codes" else _affine(weight.grid, weight.bits)
    later = form.kind == "uint8" and weight.kept is not None  # a pruned weight is 0 before the offset
    if form.kind == "uint8" and not later:
        offset += OFFSET
    values = builder.op("Reshape", _sums(builder, codes, weight.bits, factor, offset), shape)
    if weight.kept is not None:
        values = builder.op("Mul", values, _mask(builder, _as_matrix(weight.kept)))
    if later:
        values = builder.op("Add", values, builder.floats(OFFSET))
    return builder.cast(values, "INT8" if form.kind == "int8" else "UINT8")


def _as_matrix(rows: Tensor) -> Tensor:
    """Bring the rows of a weight to shape ``(inputs, outputs)``, channels last among the inputs."""
    return rows.movedim(1, -1).flatten(1).t() if rows.dim() > 2 else rows.t()


def _table_values(builder: GraphBuilder, codes: Tensor, bits: int, grid: Grid) -> str:
    """Emit the multiples that codes stand for, flat."""
    parts = PARTS[bits]
    if len(parts) == 1:
        return _looked_up(builder, codes, bits, multiples(grid, bits))
    factor, offset = _affine(grid, bits)
    values = _sums(builder, codes, bits, factor, offset)
    divisor = {"odd": 1, "integer": 1, "half": 2, "unit": 2**bits - 1}[grid]
    return values if divisor == 1 else builder.op("Div", values, builder.floats(divisor))


def _affine(grid: Grid, bits: int) -> tuple[int, int]:
    """Factor and offset that make a whole number of a code, a fixed multiple of what it stands for."""
    return (1, -(2 ** (bits - 1))) if grid == "integer" else (2, 1 - 2**bits)


def _sums(builder: GraphBuilder, codes: Tensor, bits: int, factor: int, offset: int) -> str:
    """Emit ``factor * code + offset``, flat, in float32."""
    shift, total = 0, ""
    for width in PARTS[bits]:
        part = (codes >> shift) & (2**width - 1)
        values = torch.arange(2**width, dtype=torch.float32) * (factor * 2**shift) + (0 if shift else offset)
        found = _looked_up(builder, part, width, values)
        total = builder.op("Add", total, found) if total else found
        shift += width
    return total


def _mask(builder: GraphBuilder, kept: Tensor) -> str:
    flat = _looked_up(builder, kept.to(torch.uint8), 1, torch.tensor([0.0, 1.0]))
    return builder.op("Reshape", flat, builder.integers(*kept.shape))


def _looked_up(builder: GraphBuilder, codes: Tensor, width: int, values: Tensor) -> str:
    """Emit ``values[codes]``, flat, from a stream of codes whose width divides 8."""
    slots = 8 // width
    indices = torch.arange(256)[:, None] >> (width * torch.arange(slots)) & (2**width - 1)
    stream = builder.cast(builder.constant(pack_codes(codes, width)), "INT32")
    found = builder.op("Gather", builder.constant(values[indices]), stream, axis=0)
    found = builder.op("Reshape", found, builder.integers(-1))
    if codes.numel() % slots:
        first, axis = builder.integers(0), builder.integers(0)
        found = builder.op("Slice", found, first, builder.integers(codes.numel()), axis)
    return found
