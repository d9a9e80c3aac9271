r"""The symmetric uniform grid on which quantized weights lie, and its straight-through estimator.

A code :math:`c \in \{0, \dots, n\}`, :math:`n = 2^b - 1`, stands for the level :math:`s\,(2c - n)`: an odd integer
times the scale. The levels are evenly spaced, symmetric around zero, and none of them is zero. Because ``2c - n`` is
an integer with zero point 0, plain integer arithmetic runs the weights exactly.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_balq.functional._checks import check_bits
from lightning_balq.functional._rows import per_row
from lightning_balq.functional._tracing import has_memory, has_tangent, is_traced


def odd_codes(codes: Tensor, bits: int) -> Tensor:
    """Map codes ``0 .. n`` to the odd integers ``-n, -n + 2, .., n`` (int16, wide enough for 8 bits)."""
    return codes.to(torch.int16).mul(2).sub_(2**bits - 1)


def dequantize(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    r"""Map codes to their levels, :math:`s\,(2c - n)` with :math:`n = 2^b - 1`.

    Source: Zhou et al. 2017 (arXiv:1706.07145), Algorithm 1, with the code as bin index.

    Args:
        codes: integers from 0 to ``2**bits - 1``, any shape.
        scale: half the distance between two levels, in the units of the weight, >= 0; shape ``()``, or ``(C,)`` to
            give each slice ``codes[i]`` a scale of its own.
        bits: width of a code in bits, 1 to 8.

    Returns:
        float32 levels with the shape of ``codes``.

    Raises:
        TypeError: if ``bits`` is not an int.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> dequantize(torch.tensor([0, 1, 2, 3]), torch.tensor(0.5), bits=2)
        tensor([-1.5000, -0.5000,  0.5000,  1.5000])
    """
    check_bits(bits)
    return odd_codes(codes, bits) * per_row(scale, codes)


def straight_through(value: Tensor, quantized: Tensor) -> Tensor:
    """Return ``quantized``, with the gradient of ``value``: the straight-through estimator.

    The result is exactly ``quantized``; the usual ``value + (quantized - value).detach()`` rounds twice and leaves the
    grid.

    Source: Bengio et al. 2013 (arXiv:1308.3432).

    Args:
        value: the tensor that receives the gradient; floating point.
        quantized: what the forward pass returns; the shape of ``value``, any floating type.

    Returns:
        ``quantized`` in the type of ``value``.

    Example:
        >>> weight = torch.tensor([0.3, -0.8], requires_grad=True)
        >>> straight_through(weight, torch.tensor([1.0, -1.0])).sum().backward()
        >>> weight.grad
        tensor([1., 1.])
    """
    result = quantized
    if result.requires_grad or result.dtype != value.dtype:
        result = result.detach().to(value.dtype)
    if is_traced() or not has_memory(value) or result.stride() != value.stride():
        # The same in operations that every transform knows: the difference is exactly zero. It comes first because the
        # sum takes the memory format of its first operand.
        return (value - value.detach()) + result
    if not (value.requires_grad and torch.is_grad_enabled()) and not has_tangent(value):
        return result
    passed: Tensor = _StraightThrough.apply(value, result)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return passed


def connect(value: Tensor, parameter: Tensor) -> Tensor:
    """Return ``value``, with a gradient of zero for ``parameter``, which then counts as used.

    Example:
        >>> value, parameter = torch.tensor([2.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
        >>> connect(value, parameter).sum().backward()
        >>> value.grad, parameter.grad
        (tensor([1.]), tensor([0.]))
    """
    connected: Tensor = _Connected.apply(value, parameter)  # type: ignore[no-untyped-call]  # as above
    return connected


class _Connected(torch.autograd.Function):
    """The first argument, with a gradient of zero for the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, parameter: Tensor) -> Tensor:
        ctx.save_for_backward(parameter)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (parameter,) = ctx.saved_tensors
        return gradient, torch.zeros_like(parameter)


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the gradient of the first; costs no pass over either."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Tensor | None) -> Tensor:
        return tangent.view_as(tangent)
