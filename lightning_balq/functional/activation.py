r"""Activation quantizer: clip to an interval, then round to one of ``2**bits`` evenly spaced levels.

The interval is :math:`[0, r]` for activations that are never negative and :math:`[-r, r]` for the others. Rounding is
written as ``clamp(round(x / scale), 0, n)`` with a float32 scale, the form that integer inference engines compute, so
that they reproduce the codes bit for bit. ``round`` is to even at ties, as theirs.
"""

import math

import torch
from torch import Tensor

from lightning_balq.functional._checks import check_bits, check_floating
from lightning_balq.functional._rows import accumulation_dtype, divide


def activation_scale(bits: int, *, range: Tensor, signed: Tensor) -> Tensor:
    r"""Distance between two levels: :math:`r / n`, or :math:`2r / n` if signed, with :math:`n = 2^b - 1`.

    Args:
        bits: width of a code in bits, 1 to 8.
        range: largest level :math:`r`, >= 0, in the units of the activation; scalar tensor.
        signed: whether the interval is :math:`[-r, r]`; boolean scalar tensor.

    Returns:
        float32 scalar, > 0 (a range of 0 gives the smallest normal number, so that dividing by it is defined).

    Raises:
        TypeError: if ``bits`` is not an int.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> activation_scale(2, range=torch.tensor(1.5), signed=torch.tensor(True))
        tensor(1.)
    """
    check_bits(bits)
    width = range.detach().to(torch.float32)
    width = torch.where(signed, 2 * width, width)
    return divide(width, 2**bits - 1).clamp(min=torch.finfo(torch.float32).tiny)


def activation_codes(x: Tensor, bits: int, *, range: Tensor, signed: Tensor) -> Tensor:
    r"""Codes of activations, :math:`\mathrm{clamp}(\mathrm{round}((x - l) / s),\ 0,\ n)`, as integers in float32.

    Args:
        x: activations, floating point, any shape.
        bits: width of a code in bits, 1 to 8.
        range: largest level, >= 0, in the units of ``x``; scalar tensor.
        signed: whether the smallest level :math:`l` is ``-range`` instead of 0; boolean scalar tensor.

    Returns:
        float32, shape of ``x``, integers from 0 to ``2**bits - 1``; zero has the code of the level next to it.

    Raises:
        TypeError: if ``bits`` is not an int or ``x`` not floating point.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> x = torch.tensor([-0.2, 0.3, 0.6, 1.7])
        >>> activation_codes(x, 2, range=torch.tensor(1.0), signed=torch.tensor(False))
        tensor([0., 1., 2., 3.])
    """
    check_floating(x, "x")
    # The scale stays a tensor on the device: dividing by a Python number may multiply by its reciprocal instead.
    scale = activation_scale(bits, range=range, signed=signed)
    shifted = x.detach().to(torch.float32) - _lower(range, signed)
    return (shifted / scale).round().clamp(0, 2**bits - 1)


def activation_fake_quantize(x: Tensor, bits: int, *, range: Tensor, signed: Tensor) -> Tensor:
    r"""Clip ``x`` to an interval and round it to the nearest of ``2**bits`` levels, the two ends included.

    .. math:: \hat x = s\,c + l, \quad c = \mathrm{clamp}(\mathrm{round}((x - l) / s),\ 0,\ n)

    where :math:`n = 2^b - 1`; unsigned, :math:`l = 0` and :math:`s = r / n`; signed, :math:`l = -r` and
    :math:`s = 2r / n`. Computed in float32 whatever the type of ``x``, so a signed range is at most 1.7e38.

    A value that is exactly zero stays zero, although it is none of the signed levels: it was dropped, padded or masked,
    and any level would put a bias in its place.

    Gradient: straight-through estimator, the identity where ``x`` lies inside the interval, zero outside; no gradient
    for the range.

    Source: Zhou et al. 2016 (arXiv:1606.06160), unsigned with range 1.

    Args:
        x: activations, floating point, any shape.
        bits: width of a code in bits, 1 to 8.
        range: largest level :math:`r`, >= 0, in the units of ``x``; scalar tensor.
        signed: whether the interval is :math:`[-r, r]` instead of :math:`[0, r]`; boolean scalar tensor.

    Returns:
        Shape and dtype of ``x``; at most ``2**bits`` distinct values, and zero.

    Raises:
        TypeError: if ``bits`` is not an int or ``x`` not floating point.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> x = torch.tensor([-0.2, 0.3, 0.6, 1.7])
        >>> activation_fake_quantize(x, 2, range=torch.tensor(1.0), signed=torch.tensor(False))
        tensor([0.0000, 0.3333, 0.6667, 1.0000])
        >>> x = torch.tensor([-0.2, 0.0, 0.6, 1.7])
        >>> activation_fake_quantize(x, 1, range=torch.tensor(1.0), signed=torch.tensor(True))
        tensor([-1.,  0.,  1.,  1.])
    """
    codes = activation_codes(x, bits, range=range, signed=signed)
    levels = codes * activation_scale(bits, range=range, signed=signed) + _lower(range, signed)
    values = x.detach().to(torch.float32)  # bounds would be rounded to a lower precision of x
    levels = torch.where(values == 0, 0.0, levels)
    # Not `clamp`: with tensors as bounds, torch versions disagree about its gradient at the bounds.
    is_inside = (values >= _lower(range, signed)) & (values <= range.detach())
    inside = torch.where(is_inside, x, 0.0)
    return (inside - inside.detach()) + levels.to(x.dtype)


def activation_observation(x: Tensor, spread: float = math.inf) -> Tensor:
    r"""What a batch shows: its range, 1, and whether a value is negative.

    .. math:: r = \min(\max|x|,\ \mathrm{spread} \cdot E|x|)

    Sums of observations are the sum of ranges, the number of batches, and the number of those with a negative value.

    Args:
        x: activations, floating point, any shape, at least one value.
        spread: most mean magnitudes that the range is, > 0.

    Returns:
        float32, shape ``(3,)``; zeros if a value is not finite, because such a batch shows nothing.

    Example:
        >>> activation_observation(torch.tensor([-0.5, 0.25, 1.75, 0.5]), spread=2.0)
        tensor([1.5000, 1.0000, 1.0000])
    """
    values = x.detach()
    smallest, largest = (value.to(torch.float32) for value in torch.aminmax(values))
    total = values.abs().sum(dtype=accumulation_dtype(values.device))
    return observation_of(smallest, largest, divide(total, values.numel()).to(torch.float32), spread)


def observation_of(smallest: Tensor, largest: Tensor, mean: Tensor, spread: float) -> Tensor:
    """:func:`activation_observation` of a batch whose smallest and largest value and mean magnitude are known."""
    magnitude = torch.maximum(largest, -smallest)
    finite = magnitude.isfinite()
    if spread < math.inf:
        magnitude = torch.minimum(magnitude, spread * mean)
    seen = torch.stack([magnitude, torch.ones_like(magnitude), (smallest < 0).to(torch.float32)])
    return torch.where(finite, seen, 0.0)


def _lower(range: Tensor, signed: Tensor) -> Tensor:
    return torch.where(signed, -range.detach(), 0.0).to(torch.float32)
