"""Which products can be computed in integers, exactly, and in which types.

Kernels for x86 without VNNI add pairs of products of unsigned 8-bit activations and signed 8-bit weights in 16 bits,
which overflows silently: it is exact if ``2 * largest activation * largest weight <= 32767``. Beyond that, weights are
stored unsigned, for which all kernels add in 32 bits.
"""

from dataclasses import dataclass
from typing import Literal

from lightning_balq.export.description import QuantizedInput, QuantizedWeight

LARGEST_PAIR = 2**15 - 1
LARGEST_SUM = 2**31 - 1

WeightKind = Literal["int8", "uint8", "codes"]


@dataclass(frozen=True)
class WeightForm:
    """Integers that stand for a weight in a product.

    Attributes:
        kind: ``"int8"``, odd integers (or those of the grid) as they are; ``"uint8"``, the same plus 128; ``"codes"``,
            codes of 8 bits, whose odd integers would take 9.
        unit: what one of the integers stands for, in units of the scale of the weight.
    """

    kind: WeightKind
    unit: float


def largest_activation(given: QuantizedInput) -> int:
    """Largest 8-bit integer that an input takes: signed ones are ``0 .. 2n``, with an exact zero at ``n``."""
    largest: int = 2**given.bits - 1
    return 2 * largest if given.signed else largest


def choose_form(weight: QuantizedWeight, given: QuantizedInput | None) -> WeightForm | str:
    """Choose the integers for a weight and its input, or say why they are multiplied as floats."""
    if given is None:
        return "its input is float"
    if not given.known:
        return "no training batch has shown the range of its input"
    if given.signed and given.bits == 8:
        return "a signed input of 8 bits takes 257 values, zero among them"
    codes = 2**weight.bits - 1
    largest = 2 ** (weight.bits - 1) if weight.grid == "integer" else codes
    unit = {"odd": 1.0, "integer": 1.0, "half": 0.5, "unit": 1.0 / codes}[weight.grid]
    terms = weight.codes[0].numel() if len(weight.codes) else 0
    pairs = largest_activation(given) * largest
    if 2 * terms * pairs > LARGEST_SUM:
        return f"sums of {terms} products could exceed 32 bits"
    if largest > 128:
        if weight.kept is not None:
            return "pruned weights are none of the codes of 8 bits"
        return WeightForm("codes", unit)
    return WeightForm("int8" if 2 * pairs <= LARGEST_PAIR else "uint8", unit)
