"""Quantize activations in one pass over them each way, where a compiled form can."""

from typing import Any

import torch
from torch import Tensor

from lightning_balq import functional
from lightning_balq.functional.activation import observation_of
from lightning_balq.kernels import cpu, gpu


def activation_fake_quantize(
    x: Tensor, bits: int, *, range: Tensor, signed: Tensor, spread: float | None = None
) -> tuple[Tensor, Tensor | None]:
    """Levels of :func:`lightning_balq.functional.activation_fake_quantize`, and what ``x`` shows of its range.

    A compiled form keeps one byte for each value of ``x`` for the backward pass: whether it lies inside the interval.

    Args:
        x: activations, floating point, any shape, at least one value.
        bits: width of a code in bits, 1 to 8.
        range: largest level, >= 0, in the units of ``x``; scalar tensor.
        signed: whether the smallest level is ``-range`` instead of 0; boolean scalar tensor.
        spread: that of :func:`lightning_balq.functional.activation_observation`; ``None`` observes nothing.

    Returns:
        Levels with their gradient, and the observation or ``None``.

    Example:
        >>> x = torch.tensor([-0.5, 0.25, 1.75, 0.5])
        >>> activation_fake_quantize(x, 2, range=torch.tensor(1.5), signed=torch.tensor(False), spread=2.0)
        (tensor([0.0000, 0.0000, 1.5000, 0.5000]), tensor([1.5000, 1.0000, 1.0000]))
    """
    if not torch.compiler.is_compiling():  # there, the compiler fuses the plain form with what is around it
        with_mask = x.requires_grad and torch.is_grad_enabled()
        kernels = gpu.activation_kernels(x)
        if kernels is not None:
            levels, mask, statistics = kernels.activation_levels(x.detach(), bits, range=range, signed=signed)
            smallest, largest, mean = statistics.unbind()
            observation = None if spread is None else observation_of(smallest, largest, mean, spread)
            return _attach(x, levels, mask if with_mask else None), observation
        quantized = cpu.activation(x, bits, range, signed, with_mask=with_mask, spread=spread)
        if quantized is not None:
            return _attach(x, quantized.levels, quantized.mask), quantized.observation
    levels = functional.activation_fake_quantize(x, bits, range=range, signed=signed)
    return levels, None if spread is None else functional.activation_observation(x, spread)


def _attach(x: Tensor, levels: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return levels
    attached: Tensor = _Masked.apply(x, levels, mask)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return attached


class _Masked(torch.autograd.Function):
    """Levels, with the gradient of ``x`` where the mask is true."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return levels.view_as(levels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        if not gradient.requires_grad:  # else it is differentiated again
            passed = cpu.activation_gradient(gradient, mask)
            if passed is not None:
                return passed, None, None
        return torch.where(mask, gradient, 0.0), None, None
