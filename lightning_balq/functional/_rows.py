"""Granularity: a weight seen as rows of float32 values, each row with statistics of its own."""

import torch
from torch import Tensor

from lightning_balq.functional._checks import GRANULARITIES, Granularity, check_choice, check_floating


def to_rows(weight: Tensor, granularity: Granularity) -> Tensor:
    """View ``weight`` as float32 of shape ``(1, N)`` (per tensor) or ``(C, N / C)`` (per output channel, dim 0).

    Statistics are always computed in float32, whatever the type of the weight. The result is detached: scale and
    thresholds carry no gradient.

    Raises:
        TypeError: if ``weight`` is not a floating-point tensor.
        ValueError: if ``granularity`` is unknown, or is ``"per_channel"`` for a 0-dimensional weight.
    """
    check_floating(weight, "weight")
    check_choice(granularity, "granularity", GRANULARITIES)
    if granularity == "per_channel" and weight.dim() == 0:
        raise ValueError('`granularity="per_channel"` needs a weight with an output channel (dim 0), got a scalar')
    rows = 1 if granularity == "per_tensor" else weight.shape[0]
    values = weight.detach().to(torch.float32)
    return values.reshape(rows, values.numel() // rows if rows else 0)


def per_row(statistic: Tensor, weight: Tensor) -> Tensor:
    """Reshape a statistic of shape ``(rows,)`` so that it broadcasts against ``weight``."""
    return statistic.reshape(-1, *[1] * max(weight.dim() - 1, 0)) if weight.dim() else statistic.reshape(())


def divide(values: Tensor, divisor: int) -> Tensor:
    """Divide by a whole number, correctly rounded on every device.

    Dividing by a Python number multiplies by its reciprocal on some devices, which is off by one in the last place.
    """
    return values / torch.full((), divisor, dtype=values.dtype, device=values.device)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Type in which sums are accumulated: float64, so that a float32 mean does not depend on the order of a sum.

    MPS has no float64; there, and only there, sums stay in float32.
    """
    return torch.float32 if device.type == "mps" else torch.float64
