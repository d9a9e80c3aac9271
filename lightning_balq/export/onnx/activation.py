r"""Activations in standard operators, as levels or as 8-bit integers.

Both are :func:`lightning_balq.functional.activation_fake_quantize`: the same quotient, rounded to even at ties. As
integers, unsigned activations are their codes :math:`c`. Signed ones, whose levels are odd multiples
:math:`2c - n` of half a step, are stored as :math:`2c` with the zero point :math:`n`; it stands for an exact zero,
which is none of the levels and stays zero.
"""

from dataclasses import dataclass

import torch

from lightning_balq.export.description import QuantizedInput
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.functional.activation import activation_scale


def emit_levels(builder: GraphBuilder, x: str, given: QuantizedInput) -> str:
    """Emit the levels of ``x``, float32."""
    scale, lower = _scale_and_lower(given)
    shifted = builder.op("Sub", x, builder.floats(lower)) if given.signed else x
    rounded = builder.op("Round", builder.op("Div", shifted, builder.floats(scale)))
    codes = builder.op("Clip", rounded, builder.floats(0), builder.floats(2**given.bits - 1))
    levels = builder.op("Mul", codes, builder.floats(scale))
    if not given.signed:
        return levels
    is_zero = builder.op("Equal", x, builder.floats(0))
    return builder.op("Where", is_zero, builder.floats(0), builder.op("Add", levels, builder.floats(lower)))


@dataclass(frozen=True)
class Known:
    """What is known of values before they are computed.

    Attributes:
        inside: none lies outside of the range of their levels.
        nonzero: none is zero.
    """

    inside: bool = False
    nonzero: bool = False


UNKNOWN = Known()


def emit_integers(builder: GraphBuilder, x: str, given: QuantizedInput, known: Known = UNKNOWN) -> str:
    """Emit the integers of ``x``, uint8.

    Args:
        builder: where to.
        x: name of float values.
        given: their levels, of a known range.
        known: what need not be looked at.
    """
    integers = emit_integers_of(builder, emit_codes(builder, x, given, known), given)
    if known.nonzero or not given.signed:
        return integers
    is_zero = builder.op("Equal", x, builder.floats(0))
    return builder.op("Where", is_zero, builder.byte(zero_point(given)), integers)


def emit_codes(builder: GraphBuilder, x: str, given: QuantizedInput, known: Known = UNKNOWN) -> str:
    """Emit the codes of ``x``, uint8; a zero gets that of a level beside it."""
    scale, lower = _scale_and_lower(given)
    shifted = builder.op("Sub", x, builder.floats(lower)) if given.signed else x
    codes = builder.op("QuantizeLinear", shifted, builder.floats(scale), builder.byte(0))
    return codes if given.bits == 8 or known.inside else builder.op("Min", codes, builder.byte(2**given.bits - 1))


def emit_integers_of(builder: GraphBuilder, codes: str, given: QuantizedInput) -> str:
    """Emit the integers of the levels that codes stand for."""
    return builder.op("BitShift", codes, builder.byte(1), direction="LEFT") if given.signed else codes


def emit_levels_of_codes(builder: GraphBuilder, codes: str, given: QuantizedInput) -> str:
    """Emit the levels that codes stand for, bit for bit :func:`emit_levels`."""
    scale, lower = _scale_and_lower(given)
    if not given.signed:
        return builder.op("Mul", builder.cast(codes, "FLOAT"), builder.floats(scale))
    values = builder.op("DequantizeLinear", codes, builder.floats(scale))
    return builder.op("Add", values, builder.floats(lower))


def emit_levels_of(builder: GraphBuilder, integers: str, given: QuantizedInput) -> str:
    """Emit the levels that integers of :func:`emit_integers` stand for, bit for bit :func:`emit_levels`."""
    if not given.signed:
        return emit_levels_of_codes(builder, integers, given)
    _, lower = _scale_and_lower(given)
    values = builder.op("DequantizeLinear", integers, builder.floats(unit(given)))
    levels = builder.op("Add", values, builder.floats(lower))
    zero = torch.tensor(zero_point(given), dtype=torch.float32) * unit(given)
    is_zero = builder.op("Equal", values, builder.constant(zero))
    return builder.op("Where", is_zero, builder.floats(0), levels)


def zero_point(given: QuantizedInput) -> int:
    """Integer that stands for zero."""
    largest: int = 2**given.bits - 1
    return largest if given.signed else 0


def unit(given: QuantizedInput) -> float:
    """What one of the integers stands for."""
    scale, _ = _scale_and_lower(given)
    return scale / 2 if given.signed else scale


def _scale_and_lower(given: QuantizedInput) -> tuple[float, float]:
    assert given.range is not None and given.signed is not None
    range_, signed = torch.tensor(given.range, dtype=torch.float32), torch.tensor(given.signed)
    return float(activation_scale(given.bits, range=range_, signed=signed)), -given.range if given.signed else 0.0
