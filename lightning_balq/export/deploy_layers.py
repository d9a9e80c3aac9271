"""Layers of a deploy model: int8 weights and uint8 activations, in operators that compilers know."""

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_balq.export.integers import IntegerInput, IntegerWeight

_REGISTERING = ("torch.ao.quantization.fx._decomposed", "torchao.quantization.pt2e")
"""Modules that register the operators `quantized_decomposed`; torch is moving them to torchao."""

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}
"""By the number of dimensions of an image: those that oneDNN has in int8."""


def register_operators() -> None:
    """Make ``torch.ops.quantized_decomposed`` known, which only an import does.

    Raises:
        ImportError: if nothing that is installed has it.
    """
    for module in _REGISTERING:
        if _operators() is not None:
            return
        with suppress(ImportError):
            importlib.import_module(module)
    if _operators() is None:
        raise ImportError(
            f"torch {torch.__version__} has no operators `quantized_decomposed`, of which a deploy model is made: "
            "install torchao, where torch is moving them (pip install torchao)",
            name="torchao",
        )


def _operators() -> Any:
    return getattr(torch.ops.quantized_decomposed, "dequantize_per_channel", None)


class IntegerLayer(nn.Module):
    """What the int8 layers have in common: the weight as int8 and the input as uint8.

    Run as it is, it multiplies integers that are stored as floats: their sums are exact up to 2^24. One product with a
    scale and one sum with a bias follow. A compiler that freezes the weights turns the former into an integer kernel,
    and the latter become part of what comes after it.

    Args:
        weight: integers of the weight, which fit into int8.
        bias: one number for each output channel; or ``None``.
        given: how the input is quantized.
    """

    codes: Tensor
    scale: Tensor
    units: Tensor
    zero_points: Tensor
    bias: Tensor | None

    def __init__(self, weight: IntegerWeight, bias: Tensor | None, given: IntegerInput) -> None:
        super().__init__()
        register_operators()
        self.given = given
        self.register_buffer("codes", weight.codes.to(torch.int8))
        scale = weight.scale * given.scale
        self.register_buffer("scale", scale.to(torch.float32))
        self.register_buffer("units", torch.ones(len(scale)))
        self.register_buffer("zero_points", torch.zeros(len(scale), dtype=torch.int64))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32).clone())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        register_operators()

    def activations(self, x: Tensor) -> Tensor:
        """Integers of an input, less their zero point, as floats that a compiler knows to be of uint8."""
        given = self.given
        integers: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(
            given.integers(x), 1.0, given.zero_point, 0, 255, torch.uint8
        )
        return integers

    def weight(self) -> Tensor:
        """Integers of the weight, as floats that a compiler knows to be of int8."""
        integers: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.units, self.zero_points, 0, -128, 127, torch.int8
        )
        return integers

    def scaled(self, sums: Tensor, channel: int) -> Tensor:
        """Outputs, from sums of products.

        Args:
            sums: of integers.
            channel: dimension of the output channels, from the last.
        """
        shape = (-1, *[1] * (-1 - channel))
        values = sums * self.scale.reshape(shape)
        return values if self.bias is None else values + self.bias.reshape(shape)

    def extra_repr(self) -> str:
        """Shape of the weight and width of the activations."""
        sign = "signed" if self.given.signed else "unsigned"
        return f"{'x'.join(map(str, self.codes.shape))}, int8, {self.given.bits}-bit {sign} input"


class IntegerLinear(IntegerLayer):
    """:class:`torch.nn.Linear` in int8."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the weight to the quantized input."""
        return self.scaled(F.linear(self.activations(input), self.weight()), -1)


class IntegerConv(IntegerLayer):
    """:class:`torch.nn.Conv1d` or :class:`torch.nn.Conv2d` in int8.

    Args:
        weight: integers of the weight, which fit into int8.
        bias: one number for each output channel; or ``None``.
        given: how the input is quantized.
        layer: what it stands for: stride, padding, dilation and groups are its.
    """

    def __init__(
        self, weight: IntegerWeight, bias: Tensor | None, given: IntegerInput, layer: nn.Conv1d | nn.Conv2d
    ) -> None:
        super().__init__(weight, bias, given)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding, self.border = _paddings(layer)
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def forward(self, input: Tensor) -> Tensor:
        """Apply the weight to the quantized input; what pads it is quantized with it, and zeros stay zero."""
        if self.border:
            input = F.pad(input, self.border, self.padding_mode)
        dims = self.codes.dim() - 2
        integers = self.activations(input), self.weight()
        sums = CONVOLUTIONS[dims](*integers, None, self.stride, self.padding, self.dilation, self.groups)
        return self.scaled(sums, -1 - dims)


def _paddings(layer: nn.Conv1d | nn.Conv2d) -> tuple[tuple[int, ...], list[int]]:
    """Padding with zeros by the convolution, and beforehand what it cannot do: other values, or unequal sides."""
    none = (0,) * len(layer.kernel_size)
    border = [int(size) for size in layer._reversed_padding_repeated_twice]  # from the last dimension to the first
    sides = list(zip(border[::2], border[1::2], strict=True))[::-1]
    if layer.padding_mode == "zeros" and all(left == right for left, right in sides):
        return tuple(left for left, _ in sides), []
    return none, border if any(border) else []
