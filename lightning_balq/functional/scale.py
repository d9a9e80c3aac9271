r"""Scale of the symmetric grid of a weight: from extremal values, from the mean magnitude, or by least squares.

``scale`` is half the distance between two levels, so the outermost levels are :math:`\pm s\,(2^b - 1)`. It carries no
gradient. A weight of all zeros, or of none, has scale 0.
"""

import torch
from torch import Tensor

from lightning_balq.functional._checks import Granularity, check_bits
from lightning_balq.functional._rows import accumulation_dtype, divide, to_rows
from lightning_balq.functional.grid import odd_codes

MEAN_FACTOR = 1.25
"""Outermost level in units of the mean magnitude for ``scale="mean"``; see :func:`mean_scale`."""


def max_scale(weight: Tensor, bits: int, *, granularity: Granularity = "per_tensor") -> Tensor:
    r"""Scale at which the outermost levels are the extremal values: :math:`s = \max|W| / (2^b - 1)`.

    Source: Zhou et al. 2017 (arXiv:1706.07145), Algorithm 1.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        granularity: one scale for the whole weight, or one per output channel.

    Returns:
        float32, shape ``(1,)`` or ``(C,)``, in the units of the weight.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits`` or ``granularity`` is out of range.

    Example:
        >>> max_scale(torch.tensor([0.5, -3.0, 1.0]), bits=2)
        tensor([1.])
    """
    check_bits(bits)
    largest = 2**bits - 1
    scale = divide(_bound(to_rows(weight, granularity)), largest)
    # The outermost level must not round up to infinity.
    return scale.clamp(max=torch.finfo(torch.float32).max / largest * (1 - 2.0**-20))


def mean_scale(weight: Tensor, bits: int, *, granularity: Granularity = "per_tensor") -> Tensor:
    r"""Scale at which the outermost levels are :math:`\pm 1.25` mean magnitudes: :math:`s = 1.25\,E|W| / (2^b - 1)`.

    At 2 bits this is the factor at which a *uniform* quantizer has equal bins on a Gaussian weight.

    Source: He et al. 2016 (arXiv:1611.10176), without its tanh.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        granularity: one scale for the whole weight, or one per output channel.

    Returns:
        float32, shape ``(1,)`` or ``(C,)``, in the units of the weight.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits`` or ``granularity`` is out of range.

    Example:
        >>> mean_scale(torch.tensor([0.6, -1.8, 1.2]), bits=2)
        tensor([0.5000])
    """
    check_bits(bits)
    return divide(MEAN_FACTOR * mean_magnitude(to_rows(weight, granularity)), 2**bits - 1)


def least_squares_scale(weight: Tensor, codes: Tensor, bits: int, *, granularity: Granularity = "per_tensor") -> Tensor:
    r"""Scale that minimises :math:`\|W - s\,z\|^2` for given codes.

    .. math:: s = \langle W, z\rangle / \langle z, z\rangle

    Here :math:`z = 2c - (2^b - 1)` are the odd codes. A negative solution (codes that point away from the weight, as
    for a weight far from zero whose bins are narrow) is replaced by 0, the best scale that is not negative.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        codes: integers from 0 to ``2**bits - 1``, shape of ``weight``.
        bits: width of a code in bits, 1 to 8.
        granularity: one scale for the whole weight, or one per output channel.

    Returns:
        float32, shape ``(1,)`` or ``(C,)``, in the units of the weight.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits`` or ``granularity`` is out of range.

    Example:
        >>> least_squares_scale(torch.tensor([-2.0, 1.0]), torch.tensor([0, 1]), bits=1)
        tensor([1.5000])
    """
    check_bits(bits)
    rows = to_rows(weight, granularity)
    z = odd_codes(codes, bits).reshape(rows.shape).to(torch.float32)
    dtype = accumulation_dtype(rows.device)
    # Products of float32 values and odd codes are exact in float64. In float32, w z could overflow; (w / m) z cannot.
    bound = _bound(rows)
    unit = torch.where((bound > 0) & (dtype == torch.float32), bound, 1.0)
    product = ((rows / unit[:, None]).to(dtype) * z).sum(dim=1)
    power = (z * z).sum(dim=1, dtype=dtype).clamp_(min=1.0)
    return (product / power).clamp_(min=0.0).to(torch.float32) * unit


def mean_magnitude(rows: Tensor) -> Tensor:
    """Mean of the absolute values of each row, shape ``(rows,)``; 0 for empty rows."""
    total = rows.abs().sum(dim=1, dtype=accumulation_dtype(rows.device))
    return divide(total, max(rows.shape[1], 1)).to(torch.float32)


def _bound(rows: Tensor) -> Tensor:
    """Largest absolute value of each row, shape ``(rows,)``; 0 for empty rows."""
    if rows.shape[1] == 0:
        return rows.new_zeros(rows.shape[0])
    return rows.abs().amax(dim=1)
