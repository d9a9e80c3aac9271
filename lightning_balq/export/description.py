"""What a quantized model computes, as plain values: codes and scales of its weights, ranges of its inputs.

Everything that is exported is made from a :class:`Description`, and nothing else of this package is needed to
understand one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_balq.functional._checks import check_bits, check_choice
from lightning_balq.functional._rows import divide, per_row
from lightning_balq.nn.weights import swap_grouped

Grid = Literal["odd", "half", "integer", "unit"]
GRIDS: tuple[str, ...] = get_args(Grid)


def multiples(grid: Grid, bits: int) -> Tensor:
    r"""Multiples of the scale that the codes stand for, in their order; :math:`n = 2^b - 1`.

    ========== ============================= =====================================================
    grid       multiple of code :math:`c`     used by
    ========== ============================= =====================================================
    "odd"      :math:`2c - n`                balanced and uniform quantization, DoReFa at 1 bit
    "half"     :math:`c - n / 2`             LSQ with ``grid="symmetric"``
    "integer"  :math:`c - 2^{b - 1}`         LSQ with ``grid="integer"``
    "unit"     :math:`(2c - n) / n`          DoReFa from 2 bits on, whose scale is 1
    ========== ============================= =====================================================

    Args:
        grid: name of the grid.
        bits: width of a code in bits, 1 to 8.

    Returns:
        float32, shape ``(2**bits,)``; exact but for ``"unit"``, whose quotients are rounded.

    Example:
        >>> multiples("odd", 2), multiples("integer", 2)
        (tensor([-3., -1.,  1.,  3.]), tensor([-2., -1.,  0.,  1.]))
    """
    check_bits(bits)
    check_choice(grid, "grid", GRIDS)
    largest = 2**bits - 1
    codes = torch.arange(2**bits, dtype=torch.float32)
    if grid == "half":
        return codes.sub(largest / 2)
    if grid == "integer":
        return codes.sub((largest + 1) / 2)
    odd = 2 * codes - largest
    return odd if grid == "odd" else divide(odd, largest)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """One weight: its codes, and what they stand for.

    The level of a code is ``multiples(grid, bits)[code] * scale``, a product in float32, rounded to ``dtype``. A weight
    of a transposed convolution is then brought from channels first to its own arrangement; the row ``padding_row`` of
    an embedding is replaced by ``padding``; and what pruning took is multiplied by zero.

    Attributes:
        codes: uint8, output channels in dim 0.
        scale: float32, >= 0, shape ``(1,)``, or ``(C,)`` with one for each output channel.
        bits: width of a code in bits, 1 to 8.
        grid: which multiples of the scale are levels.
        dtype: type of the weight in the model.
        method: what chose the codes, for people.
        groups: of a transposed convolution, whose weight has shape ``(in, out / groups, ..)``; ``None`` for others.
        padding_row: index of the row of an embedding that is not quantized; ``None`` if all are.
        padding: its values, shape ``(D,)``.
        kept: False where pruning set the weight to zero, shape of the weight; ``None`` if nowhere.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    grid: Grid
    dtype: torch.dtype
    method: str
    groups: int | None = None
    padding_row: int | None = None
    padding: Tensor | None = None
    kept: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight in the model."""
        return own_shape(tuple(self.codes.shape), self.groups)

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes when packed."""
        return (self.codes.numel() * self.bits + 7) // 8

    def levels(self) -> Tensor:
        """Return the weight that the forward of its layer uses, bit for bit.

        Example:
            >>> codes = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
            >>> QuantizedWeight(codes, torch.tensor([0.5, 1.0]), 2, "odd", torch.float32, "").levels()
            tensor([[-1.5000,  1.5000],
                    [-1.0000,  1.0000]])
        """
        table = multiples(self.grid, self.bits)
        values = (table[self.codes.long()] * per_row(self.scale, self.codes)).to(self.dtype)
        if self.groups is not None:
            values = swap_grouped(values, self.groups)
        if self.padding_row is not None and self.padding is not None:
            values[self.padding_row] = self.padding
        return values if self.kept is None else values * self.kept.to(self.dtype)


def own_shape(rows: tuple[int, ...], groups: int | None) -> tuple[int, ...]:
    """Shape in the model of a weight whose shape with output channels in dim 0 is ``rows``.

    Example:
        >>> own_shape((8, 2, 3, 3), groups=2)
        (4, 4, 3, 3)
    """
    return rows if groups is None else (rows[1] * groups, rows[0] // groups, *rows[2:])


@dataclass(frozen=True)
class QuantizedInput:
    """One input of a layer, or a hidden state, whose values are activations.

    With a known range, levels are those of :func:`lightning_balq.functional.activation_fake_quantize`. Inputs that no
    training batch has reached, such as the key of an attention that is always its query, are quantized by the range of
    the batch itself.

    Attributes:
        bits: width of a code in bits, 1 to 8.
        range: largest level, a float32 number, >= 0; ``None`` if not known.
        signed: whether the smallest level is ``-range`` instead of 0; ``None`` if not known.
        mode: how the range was found: ``"unit"``, ``"observed"``, ``"pact"`` or ``"lsq"``.
        sign: what was configured: ``"auto"``, ``"unsigned"`` or ``"signed"``.
    """

    bits: int
    range: float | None
    signed: bool | None
    mode: str
    sign: str

    @property
    def known(self) -> bool:
        """Whether range and sign are fixed."""
        return self.range is not None and self.signed is not None


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer.

    Attributes:
        type: name of its class.
        weights: by dotted name within the layer.
        inputs: by name; empty if activations stay float. Those called ``state..`` are hidden states.
        aliases: other names of the layer, if it is used in several places.
    """

    type: str
    weights: Mapping[str, QuantizedWeight]
    inputs: Mapping[str, QuantizedInput]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """A quantized model in inference.

    Attributes:
        layers: its quantized layers by name in ``named_modules()``.
        tensors: all other parameters and buffers by their key in the ``state_dict()`` of the float model.
        reasons: why other layers stay float, by name.
    """

    layers: Mapping[str, QuantizedLayer]
    tensors: Mapping[str, Tensor]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def weights(self) -> dict[str, QuantizedWeight]:
        """Quantized weights by their key in the ``state_dict()`` of the float model."""
        return {join(name, key): weight for name, layer in self.layers.items() for key, weight in layer.weights.items()}


def join(*parts: str) -> str:
    """Dotted name of parts, of which some may be empty."""
    return ".".join(part for part in parts if part)
