r"""How well the codes of a layer are used, from the histogram of its codes.

A histogram has shape ``(..., 2**bits)``; leading dimensions are independent layers. Histograms add up: the sum of two
is the histogram of both layers together.
"""

import math

import torch
from torch import Tensor

from lightning_balq.functional._checks import check_bits
from lightning_balq.functional._rows import accumulation_dtype


def code_histogram(codes: Tensor, bits: int) -> Tensor:
    """Number of times each code occurs.

    Args:
        codes: integers from 0 to ``2**bits - 1``, any shape.
        bits: width of a code in bits, 1 to 8.

    Returns:
        int64, shape ``(2**bits,)``.

    Raises:
        TypeError: if ``bits`` is not an int, or ``codes`` are not integers.
        ValueError: if ``bits`` is out of range, or a code is negative or too large.

    Example:
        >>> code_histogram(torch.tensor([0, 1, 1, 3]), bits=2)
        tensor([1, 2, 0, 1])
    """
    check_bits(bits)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"`codes` must be integers, got dtype {codes.dtype}")
    if codes.numel() and codes.dtype != torch.uint8 and int(codes.min()) < 0:
        raise ValueError(f"`codes` must be at least 0, got {int(codes.min())}")
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"`codes` must be at most {2**bits - 1} at bits={bits}, got {int(codes.max())}")
    return torch.bincount(codes.reshape(-1).to(torch.int64), minlength=2**bits)


def effective_bitwidth(histogram: Tensor) -> Tensor:
    r"""Shannon entropy of the distribution of codes, :math:`-\sum_c p_c \log_2 p_c`, in bits.

    It is ``bits`` when all codes are equally used, and about 1 when a 2-bit layer uses two codes of its four.

    Args:
        histogram: counts of codes, shape ``(..., 2**bits)``.

    Returns:
        float64 (float32 where there is none), shape ``(...)``, from 0 to ``bits``; 0 for an empty histogram.

    Example:
        >>> effective_bitwidth(torch.tensor([[5, 5, 5, 5], [10, 10, 0, 0]]))
        tensor([2., 1.], dtype=torch.float64)
    """
    counts = histogram.to(accumulation_dtype(histogram.device))
    share = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    nats: Tensor = torch.special.entr(share)
    return nats.sum(dim=-1).div(math.log(2))


def bin_utilization(histogram: Tensor) -> Tensor:
    """Share of codes that are used at all.

    Args:
        histogram: counts of codes, shape ``(..., 2**bits)``.

    Returns:
        float32, shape ``(...)``, from 0 to 1; 0 for an empty histogram.

    Example:
        >>> bin_utilization(torch.tensor([10, 10, 0, 1]))
        tensor(0.7500)
    """
    return (histogram > 0).to(torch.float32).mean(dim=-1)


def imbalance(histogram: Tensor) -> Tensor:
    """Largest count divided by smallest count: 1 when bins are balanced, infinite when a code is unused.

    Args:
        histogram: counts of codes, shape ``(..., 2**bits)``.

    Returns:
        float32, shape ``(...)``, at least 1; NaN for an empty histogram.

    Example:
        >>> imbalance(torch.tensor([[6, 3, 4, 5], [1, 0, 1, 1]]))
        tensor([2., inf])
    """
    counts = histogram.to(torch.float32)
    return counts.amax(dim=-1) / counts.amin(dim=-1)


def quantization_error(weight: Tensor, quantized: Tensor) -> Tensor:
    r"""Relative error of quantization, :math:`\|W - W_q\|^2 / \|W\|^2`.

    Args:
        weight: floating point, any shape.
        quantized: what stands in its place; the shape of ``weight``.

    Returns:
        float32 scalar, >= 0; 0 if both are all zeros or empty, infinite if only ``weight`` is.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> quantization_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
        tensor(0.0400)
    """
    return relative_error(*squared_error(weight, quantized))


def squared_error(weight: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(|W - W_q|^2, |W|^2)``, scalars in float64 (float32 where there is none)."""
    if weight.shape != quantized.shape:
        raise ValueError(
            f"`weight` and `quantized` must have one shape, got {tuple(weight.shape)} and {tuple(quantized.shape)}"
        )
    reference = weight.detach().to(accumulation_dtype(weight.device))
    return (reference - quantized.detach()).square().sum(), reference.square().sum()


def relative_error(error: Tensor, power: Tensor) -> Tensor:
    """Return ``error / power`` as float32, 0 where both are 0."""
    return torch.where(error == 0, 0.0, error / power).to(torch.float32)
