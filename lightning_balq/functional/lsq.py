r"""Learned scales: the step size of LSQ, for weights and activations, and for codes that do not depend on it.

The learned scale :math:`s` is the distance between two levels, which are :math:`s` times the multiples
:math:`m_0, m_0 + 1, \dots, m_1`. Its gradient is that of the levels, with the straight-through estimator for rounding,
times :math:`1 / \sqrt{N m_1}`, where N values share the scale: as large as the gradients of the weights then are in
relation to them. A scale that an optimizer made negative acts as its magnitude.

A scale is trained as its logarithm (:func:`lsq_scale`): optimizers of the kind of Adam move every parameter by about
the learning rate, which may be many times the distance of two levels.

Source: Esser et al. 2020 (arXiv:1902.08153), equations 1 to 5; for the logarithm Jain et al. 2020 (arXiv:1903.08066).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_balq.functional._checks import Granularity, check_bits, check_choice, check_floating
from lightning_balq.functional._rows import divide, per_row, to_rows
from lightning_balq.functional.activation import activation_fake_quantize
from lightning_balq.functional.scale import mean_magnitude

Grid = Literal["integer", "symmetric"]
"""Grids of a weight: integer multiples, with zero and one more below it than above, or odd multiples of a half."""

GRIDS: tuple[str, ...] = ("integer", "symmetric")


def lsq_bounds(bits: int, grid: Grid) -> tuple[float, float]:
    """Smallest and largest multiple of the scale that is a level.

    Args:
        bits: width of a code in bits, 1 to 8; at least 2 for ``"integer"``, whose only levels at 1 bit are -1 and 0.
        grid: ``"integer"`` (the paper's, for weights) or ``"symmetric"`` (that of balanced quantization).

    Raises:
        TypeError: if ``bits`` is not an int.
        ValueError: if an argument is out of range.

    Example:
        >>> lsq_bounds(2, "integer"), lsq_bounds(2, "symmetric")
        ((-2.0, 1.0), (-1.5, 1.5))
    """
    check_bits(bits)
    check_choice(grid, "grid", GRIDS)
    largest = 2**bits - 1
    if grid == "symmetric":
        return -largest / 2, largest / 2
    if bits == 1:
        raise ValueError('`grid="integer"` has no level above zero at 1 bit: use 2 bits or more, or `grid="symmetric"`')
    return -(largest + 1) / 2, (largest - 1) / 2


def lsq_scale(log_scale: Tensor) -> Tensor:
    r"""Scale of which a parameter holds the logarithm, :math:`s = e^\theta`.

    The gradient of the parameter is :math:`\frac{1}{s}\,\partial L / \partial s`, so that a step of SGD along it
    changes the scale by what a step along :math:`\partial L / \partial s` would, to first order in the step; and a step
    of Adam changes it in proportion to itself. The factor is at most about 1e19, so that the gradient stays finite.

    Source: Jain et al. 2020 (arXiv:1903.08066), section 3.3, for the logarithm; the factor of the gradient is ours.

    Args:
        log_scale: natural logarithm of the scale, any shape.

    Returns:
        float32, positive and finite, shape of ``log_scale``.

    Example:
        >>> log_scale = torch.tensor([0.5]).log().requires_grad_()
        >>> (3 * lsq_scale(log_scale)).backward()
        >>> lsq_scale(log_scale).item(), log_scale.grad
        (0.5, tensor([6.]))
    """
    limits = torch.finfo(torch.float32)
    scale = log_scale.detach().to(torch.float32).exp().clamp(limits.tiny, limits.max)
    return scale + (log_scale - log_scale.detach()) / scale.clamp(min=math.sqrt(limits.tiny))


def lsq_initial_scale(
    weight: Tensor, bits: int, *, grid: Grid = "integer", granularity: Granularity = "per_tensor"
) -> Tensor:
    r"""Scale to begin with, :math:`2\,E|W| / \sqrt{m_1}`.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits.
        grid: see :func:`lsq_bounds`.
        granularity: one scale for the whole weight, or one per output channel.

    Returns:
        float32, shape ``(1,)`` or ``(C,)``, in the units of the weight.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if an argument is out of range.

    Example:
        >>> lsq_initial_scale(torch.tensor([1.0, -3.0]), bits=2)
        tensor([4.])
    """
    _, highest = lsq_bounds(bits, grid)
    return 2 * mean_magnitude(to_rows(weight, granularity)) / math.sqrt(highest)


def lsq_codes(weight: Tensor, scale: Tensor, bits: int, *, grid: Grid = "integer") -> Tensor:
    r"""Codes of the nearest levels, :math:`\mathrm{round}(\mathrm{clip}(W / s,\ m_0,\ m_1) - m_0)`.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        scale: distance between two levels, shape ``(1,)`` or ``(C,)``, in the units of the weight.
        bits: width of a code in bits.
        grid: see :func:`lsq_bounds`.

    Returns:
        uint8 from 0 to ``2**bits - 1``, shape of ``weight``.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if an argument is out of range.

    Example:
        >>> lsq_codes(torch.tensor([-9.0, -0.6, 0.2, 3.0]), torch.tensor([1.0]), bits=2)
        tensor([0, 1, 2, 3], dtype=torch.uint8)
    """
    check_floating(weight, "weight")
    lowest, highest = lsq_bounds(bits, grid)
    ratio = weight.detach().to(torch.float32) / per_row(_positive(scale.detach()), weight)
    return (ratio.clamp(lowest, highest) - lowest).round().to(torch.uint8)


def lsq_fake_quantize(weight: Tensor, scale: Tensor, bits: int, *, grid: Grid = "integer") -> Tensor:
    r"""Replace each value by the nearest level of a grid whose scale is learned.

    .. math:: \hat W = s\,m, \quad m = \mathrm{round}(\mathrm{clip}(W / s,\ m_0,\ m_1))

    Gradients: for the weight the identity within the grid, zero outside; for the scale, times the factor above,
    :math:`m - W / s` within the grid, :math:`m_0` below and :math:`m_1` above.

    Source: Esser et al. 2020 (arXiv:1902.08153), equations 1 to 3 and 5, with ``grid="integer"``.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        scale: distance between two levels, shape ``(1,)`` or ``(C,)``, in the units of the weight.
        bits: width of a code in bits.
        grid: see :func:`lsq_bounds`.

    Returns:
        Shape and dtype of ``weight``.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if an argument is out of range.

    Example:
        >>> weight, scale = torch.tensor([-9.0, -0.6, 0.2, 3.0]), torch.tensor([1.0], requires_grad=True)
        >>> lsq_fake_quantize(weight, scale, bits=2)
        tensor([-2., -1.,  0.,  1.], grad_fn=<MulBackward0>)
    """
    check_floating(weight, "weight")
    lowest, highest = lsq_bounds(bits, grid)
    step = per_row(_scaled_gradient(_positive(scale), _factor(_sharing(weight, scale), highest)), weight)
    inside = (weight.to(torch.float32) / step).clamp(lowest, highest)
    # Exactly on the grid: the sum of a level and a difference that is zero.
    multiples = ((inside.detach() - lowest).round() + lowest) + (inside - inside.detach())
    return (multiples * step).to(weight.dtype)


def scaled_fake_quantize(weight: Tensor, odd: Tensor, scale: Tensor, bits: int) -> Tensor:
    r"""Give codes that are fixed already a scale that is learned: :math:`\hat W = s\,z / 2`, :math:`z = 2c - n`.

    Gradients: for the weight the identity; for the scale :math:`z / 2` times :math:`1 / \sqrt{N n / 2}`, that of LSQ
    where codes do not change with the scale.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        odd: odd integers :math:`z` that the codes stand for, such as balanced quantization makes with ``scale="unit"``;
            shape and dtype of ``weight``, no gradient.
        scale: distance between two levels, shape ``(1,)`` or ``(C,)``, in the units of the weight.
        bits: width of a code in bits.

    Returns:
        Shape and dtype of ``weight``.

    Example:
        >>> weight, odd = torch.tensor([-0.9, 0.1]), torch.tensor([-3.0, 1.0])
        >>> scaled_fake_quantize(weight, odd, torch.tensor([0.5]), bits=2)
        tensor([-0.7500,  0.2500])
    """
    check_bits(bits)
    half = _scaled_gradient(_positive(scale), _factor(_sharing(weight, scale), (2**bits - 1) / 2)) / 2
    result: Tensor = _Scaled.apply(weight, odd, half)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


def lsq_activation_range(scale: Tensor, bits: int, *, signed: Tensor) -> Tensor:
    r"""Largest level of an activation, :math:`n s`, or :math:`n s / 2` if signed, :math:`n = 2^b - 1`; a scalar tensor.

    Example:
        >>> lsq_activation_range(torch.tensor([0.5]), 2, signed=torch.tensor(True))
        tensor(0.7500)
    """
    return _positive(scale).reshape(()) * _largest_multiple(bits, signed)


def lsq_activation_scale(range: Tensor, bits: int, *, signed: Tensor) -> Tensor:
    """Scale whose largest level is ``range``: the inverse of :func:`lsq_activation_range`.

    Example:
        >>> lsq_activation_scale(torch.tensor(0.75), 2, signed=torch.tensor(True))
        tensor(0.5000)
    """
    return divide(torch.where(signed, 2 * range, range), 2**bits - 1)


def lsq_activation_fake_quantize(x: Tensor, scale: Tensor, bits: int, *, signed: Tensor) -> Tensor:
    r"""Quantize activations at a scale that is learned.

    Levels are those of :func:`lightning_balq.functional.activation_fake_quantize` at the range :math:`n s`, or
    :math:`n s / 2` if signed; the paper's for unsigned activations, on this package's grid for signed ones. Gradients
    are those of :func:`lsq_fake_quantize`, with N the number of values in one sample (one index of dim 0).

    Source: Esser et al. 2020 (arXiv:1902.08153).

    Args:
        x: activations, floating point, shape ``(B, ...)``.
        scale: distance between two levels, shape ``(1,)``, in the units of ``x``.
        bits: width of a code in bits, 1 to 8.
        signed: whether levels lie on both sides of zero; boolean scalar tensor.

    Returns:
        Shape and dtype of ``x``.

    Raises:
        TypeError: if ``bits`` is not an int or ``x`` not floating point.
        ValueError: if ``bits`` is out of range.

    Example:
        >>> x = torch.tensor([[-0.2, 0.3, 0.6, 1.7]])
        >>> lsq_activation_fake_quantize(x, torch.tensor([0.5]), 2, signed=torch.tensor(False))
        tensor([[0.0000, 0.5000, 0.5000, 1.5000]])
    """
    range_ = lsq_activation_range(scale.detach(), bits, signed=signed)
    levels = activation_fake_quantize(x.detach(), bits, range=range_, signed=signed)
    return lsq_attach_gradient(x, levels, scale, bits, signed=signed)


def lsq_attach_gradient(x: Tensor, levels: Tensor, scale: Tensor, bits: int, *, signed: Tensor) -> Tensor:
    """Give ``levels`` of ``x`` the gradients of :func:`lsq_activation_fake_quantize`."""
    values = x.numel() // max(x.shape[0], 1) if x.dim() else 1
    factor = (max(values, 1) * _largest_multiple(bits, signed)).rsqrt()
    step = _scaled_gradient(_positive(scale).reshape(()), factor)
    range_ = lsq_activation_range(scale.detach(), bits, signed=signed)
    result: Tensor = _Activation.apply(x, levels, step, range_, signed)  # type: ignore[no-untyped-call]  # as above
    return result


class _Scaled(torch.autograd.Function):
    """Odd codes times half the scale; the weight gets the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, odd: Tensor, half: Tensor) -> Tensor:
        ctx.save_for_backward(odd, half)
        levels = odd * per_row(half, odd)
        if levels.dtype == weight.dtype == torch.float32:  # torch 2.11 compiles away the gradient behind a vain `to`
            return levels
        return levels.to(torch.float32).to(weight.dtype)  # float32 levels, as those of all quantizers, of float64 too

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        odd, half = ctx.saved_tensors
        if not ctx.needs_input_grad[2]:
            return gradient, None, None
        products = (gradient * odd).reshape(len(half), -1)
        return gradient, None, products.sum(1, dtype=half.dtype)


class _Activation(torch.autograd.Function):
    """Levels of activations, with the gradients of LSQ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, step: Tensor, range_: Tensor, signed: Tensor) -> Tensor:
        ctx.save_for_backward(x, levels, step, range_, signed)
        return levels.view_as(levels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        x, levels, step, range_, signed = ctx.saved_tensors
        values = x.to(torch.float32)  # else bounds are rounded to the type of x
        inside = (values >= torch.where(signed, -range_, 0.0)) & (values <= range_)
        passed = torch.where(inside, gradient, 0.0)
        # A level is a multiple m of the scale s: m - x / s within the grid, m outside.
        product = (gradient * levels).sum(dtype=step.dtype) - (passed * x).sum(dtype=step.dtype)
        return passed, None, product / step, None, None


def _largest_multiple(bits: int, signed: Tensor) -> Tensor:
    """Largest multiple of the scale of an activation, n or n / 2: a tensor, as nothing on the device is looked at."""
    multiple: Tensor = (2 - signed.to(torch.float32)) * ((2**bits - 1) / 2)
    return multiple


def _positive(scale: Tensor) -> Tensor:
    return scale.to(torch.float32).abs().clamp(min=torch.finfo(torch.float32).tiny)


def _sharing(weight: Tensor, scale: Tensor) -> int:
    """How many values share a scale."""
    return weight.numel() // max(scale.numel(), 1)


def _factor(values: int, highest: float) -> float:
    return 1 / math.sqrt(max(values, 1) * highest)


def _scaled_gradient(value: Tensor, factor: float | Tensor) -> Tensor:
    """Return ``value``, whose gradient is multiplied by ``factor``."""
    part = value * factor
    return value.detach() + (part - part.detach())
