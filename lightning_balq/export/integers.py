r"""Quantized weights and activations as integers times a scale, as integer arithmetic takes them.

Weights are whole multiples of a unit, and none of them needs a zero point. An activation of an unsigned grid is its
code. An activation of a signed grid, :math:`s\,(c - n / 2)` or exactly zero, is :math:`2c`, or :math:`n` for zero, with
zero point :math:`n` and half the scale: so that zero, of which padding is made, stays zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_balq.export.description import QuantizedInput, QuantizedWeight, multiples
from lightning_balq.functional import activation_scale

INT8_PEAK = 128
"""Magnitude of -128; no grid has 128 itself."""

UINT8_MAX = 255

PAIR_MAX = 2**15 - 1
"""What the sum of two products must not exceed: CPUs without VNNI add pairs in 16 bits, and saturate silently."""

SUM_MAX = 2**31 - 1
"""What the sum of all products must not exceed."""


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A weight as integers.

    Attributes:
        codes: int16, output channels in dim 0; 0 where pruning took the weight.
        scale: float64, shape ``(C,)``, one for each output channel.
    """

    codes: Tensor
    scale: Tensor


def integer_weight(weight: QuantizedWeight) -> IntegerWeight:
    """Integers of a weight; the levels are ``codes * scale`` but for their rounding.

    Example:
        >>> codes = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
        >>> made = integer_weight(QuantizedWeight(codes, torch.tensor([0.5]), 2, "half", torch.float32, ""))
        >>> made.codes, made.scale
        (tensor([[-3,  3],
                [-1,  1]], dtype=torch.int16), tensor([0.2500, 0.2500], dtype=torch.float64))
    """
    table, unit = _table(weight)
    codes = table[weight.codes.long()]
    if weight.kept is not None:
        codes = codes * weight.kept
    return IntegerWeight(codes.to(torch.int16), weight.scale.double().expand(len(codes)) * unit)


def weight_peak(weight: QuantizedWeight) -> int:
    """Largest magnitude of an integer of the grid of a weight.

    Example:
        >>> codes = torch.tensor([[0, 1]], dtype=torch.uint8)
        >>> weight_peak(QuantizedWeight(codes, torch.tensor([0.5]), 4, "odd", torch.float32, ""))
        15
    """
    table, _ = _table(weight)
    lowest, highest = int(table.min()), int(table.max())
    return max(-lowest, highest)


@dataclass(frozen=True)
class IntegerInput:
    """How an activation becomes an unsigned integer ``u``, and what it stands for: ``(u - zero_point) * scale``.

    Attributes:
        bits: width of a code in bits.
        step: distance between two levels, a float32 number.
        range: largest level, likewise.
        signed: whether the smallest level is ``-range`` instead of 0.
    """

    bits: int
    step: float
    range: float
    signed: bool

    @property
    def largest(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def zero_point(self) -> int:
        """Integer of zero."""
        return self.largest if self.signed else 0

    @property
    def scale(self) -> float:
        """What one integer more is worth."""
        return self.step / 2 if self.signed else self.step

    @property
    def peak(self) -> int:
        """Largest integer."""
        return 2 * self.largest if self.signed else self.largest

    def integers(self, x: Tensor) -> Tensor:
        """Quantize ``x``, which must be finite; uint8, the codes are those of ``functional.activation_codes``.

        Example:
            >>> IntegerInput(bits=2, step=1.0, range=1.5, signed=True).integers(torch.tensor([-0.4, 0.0, 9.0]))
            tensor([2, 3, 6], dtype=torch.uint8)
        """
        x = x.to(torch.float32)
        if not self.signed:
            return (x / self.step).round().clamp(0, self.largest).to(torch.uint8)
        codes = ((x + self.range) / self.step).round().clamp(0, self.largest)
        return torch.where(x == 0, float(self.largest), 2 * codes).to(torch.uint8)


def integer_input(given: QuantizedInput) -> IntegerInput:
    """Integers of an input whose range is known.

    Raises:
        ValueError: if it is not.
    """
    if given.range is None or given.signed is None:
        raise ValueError("the range of the input must be known, got one that no training batch has reached")
    step = activation_scale(given.bits, range=torch.tensor(given.range), signed=torch.tensor(given.signed))
    return IntegerInput(given.bits, float(step), given.range, given.signed)


def overflow(weight: int, activation: int, products: int) -> str:
    """Why integer arithmetic would not be exact; empty if it is.

    Args:
        weight: largest magnitude of an integer of the weight.
        activation: largest integer of the activation.
        products: how many products make one output.

    Example:
        >>> overflow(weight=63, activation=255, products=4608)
        ''
        >>> overflow(weight=127, activation=255, products=4608)
        'two products reach 2 * 255 * 127 = 64770, more than 32767, where CPUs without VNNI saturate'
    """
    if weight > INT8_PEAK:
        return f"its weights are integers up to {weight}, more than int8 holds"
    if activation > UINT8_MAX:
        return f"its signed activations are integers up to {activation}, more than uint8 holds"
    pair = 2 * activation * weight
    if pair > PAIR_MAX:
        return (
            f"two products reach 2 * {activation} * {weight} = {pair}, more than {PAIR_MAX}, where CPUs without VNNI "
            "saturate"
        )
    if products * activation * weight > SUM_MAX:
        return f"a sum of {products} products can exceed 32 bits"
    return ""


def _table(weight: QuantizedWeight) -> tuple[Tensor, float]:
    """Integers that the codes of a weight stand for, and how much one is in units of its scale."""
    if weight.grid == "integer":
        return multiples("integer", weight.bits).to(torch.int16), 1.0
    units = {"odd": 1.0, "half": 0.5, "unit": 1 / (2**weight.bits - 1)}
    return multiples("odd", weight.bits).to(torch.int16), units[weight.grid]
