"""What is compared: every row of the table, in its order.

Only data, so that importing it does not import torch: the command line answers at once, the workers import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """A way to quantize: a callback of lightning_balq by name, and the arguments in which it departs from its defaults.

    Attributes:
        label: its name in tables and figures.
        colour: its colour in figures.
        callback: class in ``lightning_balq``; ``None`` is the float network.
        arguments: what is passed to it besides the widths.
    """

    label: str
    colour: str
    callback: str | None
    arguments: Mapping[str, str] = field(default_factory=dict)


METHODS = (
    Method("float", "#6e7681", None),
    Method("uniform, max scale", "#c2491d", "UniformQuantization", {"scale": "max"}),
    Method("uniform, mean scale", "#d98a1f", "UniformQuantization", {"scale": "mean"}),
    Method("uniform, least squares", "#9a7b12", "UniformQuantization", {"scale": "least_squares"}),
    Method("balanced, mean center", "#1f94a8", "BalancedQuantization", {"center": "mean"}),
    Method("balanced, median center", "#2b5fc2", "BalancedQuantization", {"center": "median"}),
    # Zhou et al. 2017: the outermost level at the largest magnitude, activations clipped to [0, 1].
    Method("balanced, paper setting", "#8250c4", "BalancedQuantization", {"scale": "max", "activation_range": "unit"}),
)
FLOAT, *QUANTIZED = METHODS
WIDTHS = (2, 4)
"""Bits of weights and of activations."""


@dataclass(frozen=True)
class Case:
    """One row: a method at a width.

    Attributes:
        method: how to quantize.
        bits: width of weights and activations; ``None`` for the float network.
    """

    method: Method
    bits: int | None

    @property
    def width(self) -> str:
        """``"W2A2"`` or ``"float"``."""
        return "float" if self.bits is None else f"W{self.bits}A{self.bits}"

    @property
    def name(self) -> str:
        """Name that no other row has."""
        return self.method.label if self.bits is None else f"{self.width} {self.method.label}"


CASES = {case.name: case for case in [Case(FLOAT, None), *(Case(m, bits) for bits in WIDTHS for m in QUANTIZED)]}
