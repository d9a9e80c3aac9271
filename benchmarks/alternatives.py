"""Other ways to quantize a weight: what a user would write who does not use this library.

All work on rows, one partition and scale each: a weight is one row (per tensor), or one row for each output channel.
They return the levels; :func:`straight_through` gives them the gradient at no cost worth measuring, so that they are
compared at their best.
"""

import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case

Levels = Callable[[Tensor, int], Tensor]

FUSED_BITS = 4
"""Widest code of the compiled form, whose compilation and work grow with the number of levels."""


def uniform(rows: Tensor, bits: int) -> Tensor:
    """Round to the nearest level of an even grid between the extremal values."""
    largest = 2**bits - 1
    bound = rows.abs().amax(dim=1, keepdim=True)
    codes = torch.clamp(torch.round((rows / bound + 1) * (largest / 2)), 0, largest)
    return bound * (2 * codes / largest - 1)


def balanced_by_scatter(rows: Tensor, bits: int) -> Tensor:
    """Give every value the index of its bin, and sum the values of each bin by ``scatter_add`` and ``bincount``."""
    count = rows.shape[0]
    row = torch.arange(count, device=rows.device)[:, None]
    codes = torch.zeros_like(rows, dtype=torch.int64)
    for level in range(bits):
        groups = (codes + row * 2**level).flatten()
        totals = rows.new_zeros(count * 2**level).scatter_add_(0, groups, rows.flatten())
        means = totals / torch.bincount(groups, minlength=len(totals))
        codes = codes * 2 + (rows >= means[groups].view_as(rows))
    return _levels(rows, codes, bits)


def balanced_by_sort(rows: Tensor, bits: int) -> Tensor:
    """Sort once; the sum of a bin is then the difference of two prefix sums, and its borders a search."""
    count, length = rows.shape
    ordered = rows.sort(dim=1).values
    sums = torch.nn.functional.pad(ordered.cumsum(dim=1, dtype=torch.float64), (1, 0))
    ends = torch.tensor([0, length], device=rows.device).expand(count, 2)
    thresholds = rows.new_empty(count, 0)
    for _ in range(bits):
        start, stop = ends[:, :-1].contiguous(), ends[:, 1:].contiguous()
        means = ((sums.gather(1, stop) - sums.gather(1, start)) / (stop - start)).float()
        ends = _interleave(ends, torch.searchsorted(ordered, means))
        thresholds = _interleave(means, thresholds)
    return _levels(rows, torch.searchsorted(thresholds, rows, right=True), bits)


def balanced_by_comparison(rows: Tensor, bits: int) -> Tensor:
    """Sum and count, for every threshold, the values at or above it; the differences are those of the bins.

    Slow as it stands, but a compiler makes one pass of each level.
    """
    total, count = rows.sum(dim=1, keepdim=True), torch.full_like(rows[:, :1], rows.shape[1])
    none = torch.zeros_like(total)
    thresholds: list[Tensor] = []
    for _ in range(bits):
        above = [rows >= threshold for threshold in thresholds]
        sums = [total, *(torch.where(mask, rows, 0.0).sum(dim=1, keepdim=True) for mask in above), none]
        counts = [count, *(mask.float().sum(dim=1, keepdim=True) for mask in above), none]
        means = [(sums[i] - sums[i + 1]) / (counts[i] - counts[i + 1]) for i in range(len(above) + 1)]
        thresholds = [item for pair in zip(means, [*thresholds, none], strict=True) for item in pair][:-1]
    codes = sum((rows >= threshold).float() for threshold in thresholds)
    return _levels(rows, codes, bits)


def straight_through(function: Levels, weight: Tensor, bits: int, *, per_channel: bool) -> Case:
    """Return a call that replaces a weight by its levels, with the gradient of the identity."""
    view = (len(weight), -1) if per_channel else (1, -1)
    return lambda: _StraightThrough.apply(weight, lambda values: function(values.reshape(view), bits))


@cache
def compiled(function: Levels, bits: int, values: int) -> Levels:
    """Compile a function for one width and number of values, and for each shape in which it meets them.

    The compiler counts recompilations by code object and gives up at a limit; a copy starts to count anew.
    """
    copy = types.FunctionType(function.__code__.replace(), function.__globals__, f"{function.__name__}_{bits}")
    return torch.compile(copy, fullgraph=True, dynamic=False)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(weight).view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _levels(rows: Tensor, codes: Tensor, bits: int) -> Tensor:
    largest = 2**bits - 1
    return rows.abs().amax(dim=1, keepdim=True) * (2 * codes.float() / largest - 1)


def _interleave(outer: Tensor, inner: Tensor) -> Tensor:
    """Merge columns as ``outer[0], inner[0], outer[1], .., outer[-1]``; ``outer`` has one more than ``inner``."""
    pairs = torch.stack([outer[:, :-1], inner], dim=2).flatten(1)
    return torch.cat([pairs, outer[:, -1:]], dim=1)
