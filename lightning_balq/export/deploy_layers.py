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
    """What the int8 layers have in common: the weight as int8 and the input as uint8, both dequantized for the layer.

    Run as it is, it computes in float what the fake-quantized layer computes. A compiler that freezes the weights turns
    it into one integer kernel with a float bias and a float output.

    Args:
        weight: integers of the weight, which fit into int8.
        bias: float32, one for each output channel; or ``None``.
        given: how the input is quantized.
    """

    codes: Tensor
    scale: Tensor
    zero_points: Tensor
    bias: Tensor | None

    def __init__(self, weight: IntegerWeight, bias: Tensor | None, given: IntegerInput) -> None:
        super().__init__()
        register_operators()
        self.given = given
        self.register_buffer("codes", weight.codes.to(torch.int8))
        self.register_buffer("scale", weight.scale.clone())
        self.register_buffer("zero_points", torch.zeros(len(weight.scale), dtype=torch.int64))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32).clone())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        register_operators()

    def activations(self, x: Tensor) -> Tensor:
        """Levels of an input, by way of uint8."""
        given = self.given
        levels: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(
            given.integers(x), given.scale, given.zero_point, 0, 255, torch.uint8
        )
        return levels

    def weight(self) -> Tensor:
        """Levels of the weight."""
        levels: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scale, self.zero_points, 0, -128, 127, torch.int8
        )
        return levels

    def extra_repr(self) -> str:
        """Shape of the weight and width of the activations."""
        sign = "signed" if self.given.signed else "unsigned"
        return f"{'x'.join(map(str, self.codes.shape))}, int8, {self.given.bits}-bit {sign} input"


class IntegerLinear(IntegerLayer):
    """:class:`torch.nn.Linear` in int8."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the weight to the quantized input."""
        return F.linear(self.activations(input), self.weight(), self.bias)


class IntegerConv(IntegerLayer):
    """:class:`torch.nn.Conv1d` or :class:`torch.nn.Conv2d` in int8.

    Args:
        weight: integers of the weight, which fit into int8.
        bias: float32, one for each output channel; or ``None``.
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
        convolve = CONVOLUTIONS[self.codes.dim() - 2]
        return convolve(
            self.activations(input), self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def _paddings(layer: nn.Conv1d | nn.Conv2d) -> tuple[tuple[int, ...], list[int]]:
    """Padding with zeros by the convolution, and beforehand what it cannot do: other values, or unequal sides."""
    none = (0,) * len(layer.kernel_size)
    border = [int(size) for size in layer._reversed_padding_repeated_twice]  # from the last dimension to the first
    sides = list(zip(border[::2], border[1::2], strict=True))[::-1]
    if layer.padding_mode == "zeros" and all(left == right for left, right in sides):
        return tuple(left for left, _ in sides), []
    return none, border if any(border) else []
