"""Levels and codes of weights, in the fastest form that can take them.

Levels carry no gradient; :func:`lightning_balq.functional.straight_through` adds it. Compiled forms agree with the
plain one except for weights within rounding of a threshold (``cpu.cpp`` and ``cuda/weights.py`` say how close), and
with themselves bit for bit, whatever the number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_balq import functional
from lightning_balq.functional._checks import BalancedScale, Center, Granularity, Scale
from lightning_balq.functional._tracing import is_compiled_for_running
from lightning_balq.kernels import cpu, gpu


def balanced_levels(
    weight: Tensor, bits: int, *, center: Center, scale: BalancedScale, granularity: Granularity
) -> Tensor:
    """Levels of :func:`lightning_balq.functional.balanced_fake_quantize`, in its dtype and shape.

    Example:
        >>> weight = torch.tensor([2.0, -0.5, 0.1, -3.0])
        >>> balanced_levels(weight, 2, center="mean", scale="max", granularity="per_tensor")
        tensor([ 3., -1.,  1., -3.])
    """
    if is_compiled_for_running():
        levels: Tensor = _balanced_operator(weight.detach(), bits, center, scale, granularity)
        return levels
    return balanced_levels_of_all([weight], bits, center=center, scale=scale, granularity=granularity)[0]


def uniform_levels(weight: Tensor, bits: int, *, scale: Scale, granularity: Granularity) -> Tensor:
    """Levels of :func:`lightning_balq.functional.uniform_fake_quantize`, in its dtype and shape.

    Example:
        >>> uniform_levels(torch.tensor([3.0, -0.5, 0.1, 2.1]), 2, scale="max", granularity="per_tensor")
        tensor([ 3., -1.,  1.,  3.])
    """
    if is_compiled_for_running():
        levels: Tensor = _uniform_operator(weight.detach(), bits, scale, granularity)
        return levels
    return uniform_levels_of_all([weight], bits, scale=scale, granularity=granularity)[0]


def balanced_codes(weight: Tensor, bits: int, *, center: Center, granularity: Granularity) -> Tensor:
    """Codes of :func:`lightning_balq.functional.balanced_codes`.

    Example:
        >>> balanced_codes(torch.tensor([1.0, 10.0, 2.0, 3.0]), 2, center="median", granularity="per_tensor")
        tensor([0, 3, 1, 2], dtype=torch.uint8)
    """
    codes = cpu.balanced(weight, bits, center, "max", granularity, codes=True)
    return functional.balanced_codes(weight, bits, center=center, granularity=granularity) if codes is None else codes


def uniform_codes(weight: Tensor, bits: int, *, scale: Scale, granularity: Granularity) -> Tensor:
    """Codes of uniform quantization at the scale of :func:`lightning_balq.functional.uniform_scale`.

    Example:
        >>> uniform_codes(torch.tensor([-9.0, -1.0, 0.0, 3.1]), 2, scale="max", granularity="per_tensor")
        tensor([0, 1, 1, 2], dtype=torch.uint8)
    """
    codes = cpu.uniform(weight, bits, scale, granularity, codes=True)
    if codes is not None:
        return codes
    step = functional.uniform_scale(weight, bits, scale=scale, granularity=granularity)
    return functional.uniform_codes(weight, step, bits)


def balanced_levels_of_all(
    weights: Sequence[Tensor], bits: int, *, center: Center, scale: BalancedScale, granularity: Granularity
) -> list[Tensor]:
    """:func:`balanced_levels` of several weights; on a GPU in few launches for all of them."""
    kernels = gpu.weight_kernels(weights) if center == "mean" else None
    if kernels is not None:
        levels: list[Tensor] = kernels.balanced_levels(weights, bits, scale=scale, granularity=granularity)
        return levels
    return [_balanced_alone(weight, bits, center, scale, granularity) for weight in weights]


def uniform_levels_of_all(
    weights: Sequence[Tensor], bits: int, *, scale: Scale, granularity: Granularity
) -> list[Tensor]:
    """:func:`uniform_levels` of several weights; on a GPU in few launches for all of them."""
    kernels = gpu.weight_kernels(weights)
    if kernels is not None:
        levels: list[Tensor] = kernels.uniform_levels(weights, bits, scale=scale, granularity=granularity)
        return levels
    return [_uniform_alone(weight, bits, scale, granularity) for weight in weights]


@torch.no_grad()
def _balanced_alone(
    weight: Tensor, bits: int, center: Center, scale: BalancedScale, granularity: Granularity
) -> Tensor:
    levels = cpu.balanced(weight, bits, center, scale, granularity)
    if levels is not None:
        return levels
    return functional.balanced_fake_quantize(weight.detach(), bits, center=center, scale=scale, granularity=granularity)


@torch.no_grad()
def _uniform_alone(weight: Tensor, bits: int, scale: Scale, granularity: Granularity) -> Tensor:
    levels = cpu.uniform(weight, bits, scale, granularity)
    if levels is not None:
        return levels
    return functional.uniform_fake_quantize(weight.detach(), bits, scale=scale, granularity=granularity)


# Inside a compiled model the same code runs, as an operator that the compiler does not look into.


@torch.library.custom_op("lightning_balq::balanced_levels", mutates_args=())
def _balanced_operator(weight: Tensor, bits: int, center: str, scale: str, granularity: str) -> Tensor:
    (levels,) = balanced_levels_of_all([weight], bits, center=center, scale=scale, granularity=granularity)  # type: ignore[arg-type]  # an operator takes no Literal
    return _laid_out_as(weight, levels)


@torch.library.custom_op("lightning_balq::uniform_levels", mutates_args=())
def _uniform_operator(weight: Tensor, bits: int, scale: str, granularity: str) -> Tensor:
    (levels,) = uniform_levels_of_all([weight], bits, scale=scale, granularity=granularity)  # type: ignore[arg-type]  # as above
    return _laid_out_as(weight, levels)


@_balanced_operator.register_fake
@_uniform_operator.register_fake
def _like(weight: Tensor, *options: object) -> Tensor:
    return torch.empty_like(weight)


def _laid_out_as(weight: Tensor, levels: Tensor) -> Tensor:
    """Give the strides that the compiler was promised."""
    promised = torch.empty_like(weight)
    return levels if levels.stride() == promised.stride() else promised.copy_(levels)
