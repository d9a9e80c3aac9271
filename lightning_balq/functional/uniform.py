r"""Uniform weight quantizers, the baselines: nearest level of an evenly spaced grid.

:func:`uniform_fake_quantize` rounds to the grid that balanced quantization uses, at the same choice of scales;
:func:`dorefa_fake_quantize` is the tanh form of DoReFa-Net.
"""

import torch
from torch import Tensor

from lightning_balq.functional._checks import SCALES, Granularity, Scale, check_bits, check_choice
from lightning_balq.functional._rows import divide, per_row, to_rows
from lightning_balq.functional.grid import dequantize, odd_codes, straight_through
from lightning_balq.functional.scale import least_squares_scale, max_scale, mean_magnitude, mean_scale

_REFINEMENTS = 2
"""Rounds of the alternating minimisation of ``scale="least_squares"``: within 1.3 times the least error on Gaussian and
Laplace weights (20 000 values) at 1 to 4 bits, where the choice matters."""


def uniform_scale(
    weight: Tensor, bits: int, *, scale: Scale = "max", granularity: Granularity = "per_tensor"
) -> Tensor:
    r"""Scale of a uniform weight quantizer.

    ``"least_squares"`` lowers :math:`\|W - Q(W)\|^2` by alternating between codes and scale, from an outermost level of
    ``bits`` mean magnitudes (at most the maximum). At 1 bit that is the scale of BWN, :math:`E|W|`, up to rounding.

    Sources: Zhou et al. 2017 (arXiv:1706.07145), ``"max"``; He et al. 2016 (arXiv:1611.10176), ``"mean"``;
    Rastegari et al. 2016 (arXiv:1603.05279), ``"least_squares"`` at 1 bit.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        scale: ``"max"`` (extremal values), ``"mean"`` or ``"least_squares"``.
        granularity: one scale for the whole weight, or one per output channel.

    Returns:
        float32, half the distance between two levels, shape ``(1,)`` or ``(C,)``, in the units of the weight.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits``, ``scale`` or ``granularity`` is out of range.

    Example:
        >>> uniform_scale(torch.tensor([0.5, -3.0, 1.0]), bits=1, scale="least_squares")
        tensor([1.5000])
    """
    check_choice(scale, "scale", SCALES)
    largest = max_scale(weight, bits, granularity=granularity)
    if scale == "max":
        return largest
    if scale == "mean":
        return mean_scale(weight, bits, granularity=granularity)
    start = divide(bits * mean_magnitude(to_rows(weight, granularity)), 2**bits - 1)
    refined = torch.minimum(start, largest)
    for _ in range(_REFINEMENTS):
        codes = uniform_codes(weight, refined, bits)
        refined = least_squares_scale(weight, codes, bits, granularity=granularity)
    return refined


def uniform_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    r"""Codes of the nearest levels.

    .. math:: c = \mathrm{clamp}(\mathrm{rtz}(W / (2s) + n / 2),\ 0,\ n), \quad n = 2^b - 1

    Here rtz rounds half toward zero: of two levels equally near, the lower is taken.

    Source: Zhou et al. 2017 (arXiv:1706.07145), :math:`Q_k`.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        scale: half the distance between two levels, >= 0; shape ``(1,)`` or ``(C,)``, in the units of the weight.
        bits: width of a code in bits, 1 to 8.

    Returns:
        uint8 from 0 to ``2**bits - 1``, shape of ``weight``.

    Raises:
        TypeError: if ``bits`` is not an int.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> uniform_codes(torch.tensor([-9.0, -1.0, 0.0, 0.1]), torch.tensor([1.0]), bits=2)
        tensor([0, 1, 1, 2], dtype=torch.uint8)
    """
    check_bits(bits)
    values = weight.detach().to(torch.float32)
    # A scale of 0 belongs to weights of 0, whose level is 0 whatever the code.
    half_step = per_row(scale, values).clamp(min=2.0**-149)
    largest = 2**bits - 1
    return (values / half_step).add_(largest - 1).div_(2).ceil_().clamp_(0, largest).to(torch.uint8)


def uniform_fake_quantize(
    weight: Tensor, bits: int, *, scale: Scale = "max", granularity: Granularity = "per_tensor"
) -> Tensor:
    r"""Replace each value by the nearest of ``2**bits`` evenly spaced levels, :math:`s\,(2c - n)`, :math:`n = 2^b - 1`.

    Gradient: straight-through estimator, the identity for every value, clipped ones included; the scale carries no
    gradient.

    Source: Zhou et al. 2017 (arXiv:1706.07145), whose baseline is ``scale="max"``.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        scale: outermost level at ``"max"`` magnitude, at 1.25 times the ``"mean"`` magnitude, or where the levels fit
            the weight best (``"least_squares"``); see :func:`uniform_scale`.
        granularity: one scale for the whole weight, or one per output channel.

    Returns:
        Shape and dtype of ``weight``; at most ``2**bits`` distinct values for each scale.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits``, ``scale`` or ``granularity`` is out of range.

    Example:
        >>> uniform_fake_quantize(torch.tensor([3.0, -0.5, 0.1, 2.1]), bits=2)
        tensor([ 3., -1.,  1.,  3.])
    """
    step = uniform_scale(weight, bits, scale=scale, granularity=granularity)
    return straight_through(weight, dequantize(uniform_codes(weight, step, bits), step, bits))


def dorefa_codes(weight: Tensor, bits: int, *, granularity: Granularity = "per_tensor") -> Tensor:
    r"""Codes of DoReFa-Net weights; see :func:`dorefa_fake_quantize`.

    Source: Zhou et al. 2016 (arXiv:1606.06160), equations 7 to 9.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        granularity: one maximum (at 1 bit: mean) for the whole weight, as in the paper, or one per output channel.

    Returns:
        uint8 from 0 to ``2**bits - 1``, shape of ``weight``.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits`` or ``granularity`` is out of range.

    Example:
        >>> dorefa_codes(torch.tensor([-2.0, -0.1, 0.1, 2.0]), bits=2)
        tensor([0, 1, 2, 3], dtype=torch.uint8)
    """
    check_bits(bits)
    values = to_rows(weight, granularity).reshape(weight.shape)
    if bits == 1:
        return (values >= 0).to(torch.uint8)
    return uniform_codes(_normalised_tanh(values, granularity), values.new_tensor([1.0 / (2**bits - 1)]), bits)


def dorefa_fake_quantize(weight: Tensor, bits: int, *, granularity: Granularity = "per_tensor") -> Tensor:
    r"""Quantize weights as DoReFa-Net does.

    .. math:: W_q = 2\,Q_b(\tanh W / (2 \max|\tanh W|) + 1/2) - 1; \quad W_q = E|W|\,\mathrm{sign}(W)\ \text{at 1 bit}

    The levels lie in [-1, 1] whatever the size of the weight. Gradient: the straight-through estimator stands for the
    rounding :math:`Q_b` alone, so that tanh and its maximum are differentiated; at 1 bit the gradient is the identity.

    Source: Zhou et al. 2016 (arXiv:1606.06160), equations 7 to 9.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        granularity: one maximum (at 1 bit: mean) for the whole weight, as in the paper, or one per output channel.

    Returns:
        Shape and dtype of ``weight``; at most ``2**bits`` distinct values.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits`` or ``granularity`` is out of range.

    Example:
        >>> dorefa_fake_quantize(torch.tensor([-2.0, -0.1, 0.1, 2.0]), bits=2)
        tensor([-1.0000, -0.3333,  0.3333,  1.0000])
        >>> dorefa_fake_quantize(torch.tensor([-2.0, 1.0]), bits=1)
        tensor([-1.5000,  1.5000])
    """
    levels = dorefa_levels(weight, bits, granularity=granularity)
    return dorefa_straight_through(weight, levels, bits, granularity=granularity)


def dorefa_levels(weight: Tensor, bits: int, *, granularity: Granularity = "per_tensor") -> Tensor:
    """Levels of :func:`dorefa_fake_quantize`, in float32 and without gradient."""
    codes = dorefa_codes(weight, bits, granularity=granularity)
    if bits == 1:
        return dequantize(codes, mean_magnitude(to_rows(weight, granularity)), bits)
    return divide(odd_codes(codes, bits).to(torch.float32), 2**bits - 1)


def dorefa_straight_through(
    weight: Tensor, levels: Tensor, bits: int, *, granularity: Granularity = "per_tensor"
) -> Tensor:
    """Give ``levels`` the gradient of :func:`dorefa_fake_quantize`, and the type of ``weight``."""
    if bits == 1:
        return straight_through(weight, levels)
    return straight_through(_normalised_tanh(weight.to(torch.float32), granularity), levels).to(weight.dtype)


def _normalised_tanh(values: Tensor, granularity: Granularity) -> Tensor:
    """``tanh(values)`` divided by its largest magnitude, of all or of each channel; all zeros stay zeros."""
    squashed = values.tanh()
    if values.numel() == 0:
        return squashed
    magnitudes = squashed.abs()
    largest = magnitudes.amax() if granularity == "per_tensor" else magnitudes.flatten(1).amax(1)
    return squashed / per_row(torch.where(largest > 0, largest, 1.0), squashed)
