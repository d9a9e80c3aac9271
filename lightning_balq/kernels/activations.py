"""Quantize activations in one pass over them each way, where a compiled form can."""

from typing import Any

import torch
from torch import Tensor

from lightning_balq import functional
from lightning_balq.kernels import cpu, gpu


def activation_fake_quantize(
    x: Tensor, bits: int, *, range: Tensor, signed: Tensor, observe: bool
) -> tuple[Tensor, Tensor | None]:
    """Levels of :func:`lightning_balq.functional.activation_fake_quantize`, and the statistics of ``x``.

    A compiled form keeps one byte for each value of ``x`` for the backward pass: whether it lies inside the interval.

    Args:
        x: activations, floating point, any shape, at least one value.
        bits: width of a code in bits, 1 to 8.
        range: largest level, >= 0, in the units of ``x``; scalar tensor.
        signed: whether the smallest level is ``-range`` instead of 0; boolean scalar tensor.
        observe: whether to return :func:`lightning_balq.functional.activation_statistics` too; else ``None``.

    Example:
        >>> x = torch.tensor([-0.5, 0.25, 1.75, 0.5])
        >>> activation_fake_quantize(x, 2, range=torch.tensor(1.5), signed=torch.tensor(False), observe=True)
        (tensor([0.0000, 0.0000, 1.5000, 0.5000]), tensor([-0.5000,  1.7500,  0.7500]))
    """
    if not torch.compiler.is_compiling():  # there, the compiler fuses the plain form with what is around it
        with_mask = x.requires_grad and torch.is_grad_enabled()
        kernels = gpu.activation_kernels(x)
        if kernels is not None:
            levels, mask, statistics = kernels.activation_levels(x.detach(), bits, range=range, signed=signed)
            return _attach(x, levels, mask if with_mask else None), statistics if observe else None
        quantized = cpu.activation(x, bits, range, signed, with_mask=with_mask, with_statistics=observe)
        if quantized is not None:
            return _attach(x, quantized.levels, quantized.mask), quantized.statistics
    levels = functional.activation_fake_quantize(x, bits, range=range, signed=signed)
    return levels, functional.activation_statistics(x) if observe else None


def _attach(x: Tensor, levels: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return levels
    attached: Tensor = _Masked.apply(x, levels, mask)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return attached


class _Masked(torch.autograd.Function):
    """Levels, with the gradient of ``x`` where the mask is true."""

    @staticmethod
    def forward(x: Tensor, levels: Tensor, mask: Tensor) -> Tensor:
        return levels.view_as(levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        if not gradient.requires_grad:  # else it is differentiated again
            passed = cpu.activation_gradient(gradient, mask)
            if passed is not None:
                return passed, None, None
        return torch.where(mask, gradient, 0.0), None, None
