"""Find the scale of levels that lie on the odd grid, exactly."""

import torch
from torch import Tensor

from lightning_balq.export.description import multiples

_NEIGHBOURS = 4
"""Float32 numbers on either side of the least-squares estimate that are tried; the estimate is off by one at most."""


def fit_odd_grid(levels: Tensor, codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    r"""Codes and scales of which levels are exactly :math:`s\,(2c - n)`, as float32 products.

    Levels and codes can come from different kernels, which agree except within rounding of a threshold: the levels are
    what the network computes, so they decide, and the codes only say where to look.

    Args:
        levels: float32, shape ``(rows, N)``, each row on a grid of its own.
        codes: uint8, same shape, right for nearly all values of each row.
        bits: width of a code in bits.

    Returns:
        uint8 codes, shape ``(rows, N)``, and float32 scales, shape ``(rows,)``.

    Raises:
        ValueError: if a row is not on such a grid.

    Example:
        >>> levels = torch.tensor([[-1.5, 0.5, 1.5]])
        >>> fit_odd_grid(levels, torch.tensor([[0, 2, 3]], dtype=torch.uint8), bits=2)
        (tensor([[0, 2, 3]], dtype=torch.uint8), tensor([0.5000]))
    """
    largest = 2**bits - 1
    if levels.numel() == 0:
        return codes, levels.new_zeros(len(levels))
    odd = codes.to(torch.float32) * 2 - largest
    peak = levels.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    guess = (levels / peak[:, None] * odd).sum(dim=1, dtype=torch.float64) / odd.square().sum(dim=1)
    usable = (guess > 0)[:, None]
    unit = torch.where(usable, guess[:, None], 1.0).to(torch.float32)
    nearest = ((levels / peak[:, None] / unit + largest) / 2).round().clamp(0, largest).to(torch.uint8)
    codes = torch.where(usable, nearest, codes)  # a scale of zero leaves nothing to be seen
    return codes, _scale(levels, codes, bits)


def _scale(levels: Tensor, codes: Tensor, bits: int) -> Tensor:
    # All values of one code are the same level: one of each is enough, whatever the size of the weight.
    table = levels.new_full((len(levels), 2**bits), torch.nan).scatter_(1, codes.long(), levels)
    present = ~table.isnan()
    odd = multiples("odd", bits)
    wide = torch.where(present, table, 0.0).double()
    power = torch.where(present, odd.double().square(), 0.0).sum(dim=1)
    candidate = ((wide * odd.double()).sum(dim=1) / power).clamp(min=0).to(torch.float32)
    for _ in range(_NEIGHBOURS):
        candidate = candidate.nextafter(torch.zeros_like(candidate))
    scale = torch.full_like(candidate, torch.nan)
    for _ in range(2 * _NEIGHBOURS + 1):
        exact = ((odd * candidate[:, None] == table) | ~present).all(dim=1)
        scale = torch.where(scale.isnan() & exact, candidate, scale)
        candidate = candidate.nextafter(torch.full_like(candidate, torch.inf))
    if bool(scale.isnan().any()):
        row = int(scale.isnan().nonzero()[0])
        raise ValueError(f"the levels of row {row} are not multiples `2c - {2**bits - 1}` of one scale")
    return scale
