r"""PACT: activations that are clipped at a learned range."""

from typing import Any

import torch
from torch import Tensor

from lightning_balq.functional.activation import activation_fake_quantize


def pact_fake_quantize(x: Tensor, range: Tensor, bits: int, *, signed: Tensor) -> Tensor:
    r"""Clip activations to an interval whose end is learned, and round to the nearest of ``2**bits`` levels.

    .. math:: \hat x = \mathrm{round}(\mathrm{clip}(x,\ 0,\ \alpha)\,n / \alpha)\,\alpha / n, \quad n = 2^b - 1

    Gradients: for ``x`` the identity where :math:`0 \le x < \alpha`, else zero; for :math:`\alpha` one where
    :math:`x \ge \alpha`, else zero. Signed, the interval is :math:`[-\alpha, \alpha]` on this package's grid, and
    values at or below :math:`-\alpha` count -1. The paper's penalty on :math:`\alpha` is weight decay in the optimizer.

    Source: Choi et al. 2018 (arXiv:1805.06085), equations 1 to 3.

    Args:
        x: activations, floating point, any shape.
        range: :math:`\alpha`, shape ``(1,)``, in the units of ``x``; its magnitude is taken.
        bits: width of a code in bits, 1 to 8.
        signed: whether the interval is :math:`[-\alpha, \alpha]`; boolean scalar tensor.

    Returns:
        Shape and dtype of ``x``.

    Raises:
        TypeError: if ``bits`` is not an int or ``x`` not floating point.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> x, range = torch.tensor([-0.2, 0.3, 0.6, 1.7]), torch.tensor([1.0], requires_grad=True)
        >>> pact_fake_quantize(x, range, 2, signed=torch.tensor(False)).sum().backward()
        >>> range.grad
        tensor([1.])
    """
    levels = activation_fake_quantize(x.detach(), bits, range=range.detach().abs().reshape(()), signed=signed)
    return pact_attach_gradient(x, levels, range, signed=signed)


def pact_attach_gradient(x: Tensor, levels: Tensor, range: Tensor, *, signed: Tensor) -> Tensor:
    """Give ``levels`` of ``x`` the gradients of :func:`pact_fake_quantize`."""
    result: Tensor = _Clipped.apply(x, levels, range.abs().reshape(()), signed)  # type: ignore[no-untyped-call]  # torch leaves it so
    return result


class _Clipped(torch.autograd.Function):
    """Levels of activations, with the gradients of PACT."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, range_: Tensor, signed: Tensor) -> Tensor:
        ctx.save_for_backward(x, range_, signed)
        return levels.view_as(levels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None]:
        x, range_, signed = ctx.saved_tensors
        values, bound = x.to(torch.float32), range_.to(torch.float32)  # else bounds are rounded to the type of x
        above = values >= bound
        below = torch.where(signed, values <= -bound, values < 0)
        passed = torch.where(above | below, 0.0, gradient)
        by_range = torch.where(above, gradient, torch.where(signed & below, -gradient, 0.0))
        return passed, None, by_range.sum(dtype=range_.dtype), None
