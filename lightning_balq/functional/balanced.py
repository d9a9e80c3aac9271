r"""Balanced quantization: bins of equal population, levels on a uniform grid.

A weight is partitioned recursively: the values of a bin are split at its center :math:`T` (mean or median) into those
below :math:`T` and those at or above it, ``bits`` times. The code of a value is the index of its bin, from lowest to
highest, and bin :math:`c` is mapped to level :math:`s\,(2c - (2^b - 1))`.

Source: Zhou et al. 2017 (arXiv:1706.07145), Algorithms 1 and 2. In the literal formula the smallest element of every
bin but the lowest drops one level, a rounding accident of the affine map inside a bin; here the code is the bin index.

Edge cases. A bin that receives no values (ties, fewer values than bins) keeps the threshold of its parent. Values equal
to a threshold belong above it, so a weight whose values are all equal has the highest code throughout.
"""

import torch
from torch import Tensor

from lightning_balq.functional._checks import (
    BALANCED_SCALES,
    CENTERS,
    BalancedScale,
    Center,
    Granularity,
    check_bits,
    check_choice,
)
from lightning_balq.functional._rows import accumulation_dtype, to_rows
from lightning_balq.functional.grid import dequantize, straight_through
from lightning_balq.functional.scale import least_squares_scale, max_scale, mean_scale


def balanced_thresholds(
    weight: Tensor, bits: int, *, center: Center = "mean", granularity: Granularity = "per_tensor"
) -> Tensor:
    """Thresholds between the ``2**bits`` bins of the recursive partition, in ascending order.

    A value belongs to bin ``c`` if exactly ``c`` thresholds are less than or equal to it. Means are accumulated in
    float64 and rounded to float32 once; the median of an even number of values is the mean of the middle two.

    Source: Zhou et al. 2017 (arXiv:1706.07145), Algorithm 2.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        center: where a bin is split: its ``"mean"`` (cheaper) or its ``"median"`` (exact quantiles).
        granularity: one partition for the whole weight, or one per output channel.

    Returns:
        float32, shape ``(1, 2**bits - 1)`` or ``(C, 2**bits - 1)``, in the units of the weight.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits``, ``center`` or ``granularity`` is out of range.

    Example:
        >>> balanced_thresholds(torch.tensor([1.0, 2.0, 3.0, 10.0]), bits=2)
        tensor([[ 2.,  4., 10.]])
        >>> balanced_thresholds(torch.tensor([1.0, 2.0, 3.0, 10.0]), bits=2, center="median")
        tensor([[1.5000, 2.5000, 6.5000]])
    """
    return _partition(to_rows(weight, granularity), bits, center)[1]


def balanced_codes(
    weight: Tensor, bits: int, *, center: Center = "mean", granularity: Granularity = "per_tensor"
) -> Tensor:
    """Codes of the recursive partition: the index of the bin to which each value belongs.

    Source: Zhou et al. 2017 (arXiv:1706.07145), Algorithm 2.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        center: where a bin is split: its ``"mean"`` (cheaper) or its ``"median"`` (exact quantiles).
        granularity: one partition for the whole weight, or one per output channel.

    Returns:
        uint8 from 0 to ``2**bits - 1``, shape of ``weight``.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits``, ``center`` or ``granularity`` is out of range.

    Example:
        >>> balanced_codes(torch.tensor([1.0, 10.0, 2.0, 3.0]), bits=2)
        tensor([0, 3, 1, 1], dtype=torch.uint8)
        >>> balanced_codes(torch.tensor([1.0, 10.0, 2.0, 3.0]), bits=2, center="median")
        tensor([0, 3, 1, 2], dtype=torch.uint8)
    """
    return _partition(to_rows(weight, granularity), bits, center)[0].reshape(weight.shape)


def balanced_fake_quantize(
    weight: Tensor,
    bits: int,
    *,
    center: Center = "mean",
    scale: BalancedScale = "max",
    granularity: Granularity = "per_tensor",
) -> Tensor:
    r"""Replace each value by the level of its bin, :math:`s\,(2c - (2^b - 1))`.

    Gradient: straight-through estimator, the identity for every value; scale and thresholds carry no gradient.

    Source: Zhou et al. 2017 (arXiv:1706.07145), Algorithms 1 and 2, which is ``scale="max"``.

    Args:
        weight: floating point, any shape; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        center: where a bin is split: its ``"mean"`` (cheaper) or its ``"median"`` (exact quantiles).
        scale: outermost level at ``"max"`` magnitude, at 1.25 times the ``"mean"`` magnitude, or where the levels fit
            the weight best (``"least_squares"``); ``"unit"`` is the scale 1, whose levels are odd integers.
        granularity: one partition and scale for the whole weight, or one per output channel.

    Returns:
        Shape and dtype of ``weight``; at most ``2**bits`` distinct values for each scale.

    Raises:
        TypeError: if ``bits`` is not an int or ``weight`` not floating point.
        ValueError: if ``bits``, ``center``, ``scale`` or ``granularity`` is out of range.

    Example:
        >>> balanced_fake_quantize(torch.tensor([2.0, -0.5, 0.1, -3.0]), bits=2)
        tensor([ 3., -1.,  1., -3.])
    """
    check_choice(scale, "scale", BALANCED_SCALES)
    codes = balanced_codes(weight, bits, center=center, granularity=granularity)
    if scale == "max":
        step = max_scale(weight, bits, granularity=granularity)
    elif scale == "mean":
        step = mean_scale(weight, bits, granularity=granularity)
    elif scale == "unit":
        step = torch.ones(1, dtype=torch.float32, device=weight.device)
    else:
        step = least_squares_scale(weight, codes, bits, granularity=granularity)
    return straight_through(weight, dequantize(codes, step, bits))


def _partition(rows: Tensor, bits: int, center: Center) -> tuple[Tensor, Tensor]:
    """Codes (uint8, shape of ``rows``) and thresholds (shape ``(rows, 2**bits - 1)``)."""
    check_bits(bits)
    check_choice(center, "center", CENTERS)
    return _partition_at_means(rows, bits) if center == "mean" else _partition_at_medians(rows, bits)


def _partition_at_means(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    count = rows.shape[0]
    codes = torch.zeros_like(rows, dtype=torch.int64)
    centers = rows.new_zeros(count, 1)
    thresholds = rows.new_empty(count, 2**bits - 1)
    for level in range(bits):
        totals, members = _sum_bins(rows, codes, 2**level)
        means = (totals / members).to(torch.float32)
        parents = centers if level == 0 else centers.repeat_interleave(2, dim=1)
        centers = torch.where(members > 0, means, parents)
        codes = codes * 2 + (rows >= centers.gather(1, codes))
        # In-order positions of a binary tree: the splits of this level lie between those of the levels above.
        thresholds[:, 2 ** (bits - 1 - level) - 1 :: 2 ** (bits - level)] = centers
    return codes.to(torch.uint8), thresholds


def _sum_bins(rows: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sum and number of the values in each bin of each row, shape ``(rows, size)``, in a fixed order of summation."""
    dtype = accumulation_dtype(rows.device)
    if rows.device.type == "cpu":  # a scatter is sequential within a row there
        totals = rows.new_zeros(rows.shape[0], size, dtype=dtype)
        members = torch.zeros_like(totals, dtype=torch.int64)
        one = torch.ones((), dtype=torch.int64).expand_as(codes)
        return totals.scatter_add_(1, codes, rows.to(dtype)), members.scatter_add_(1, codes, one)
    # On accelerators a scatter adds in no fixed order, so that ranks could disagree: reduce one mask per bin.
    masks = [codes == index for index in range(size)]
    totals = torch.stack([torch.where(mask, rows, 0.0).sum(dim=1, dtype=dtype) for mask in masks], dim=1)
    return totals, torch.stack([mask.sum(dim=1) for mask in masks], dim=1)


def _partition_at_medians(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    count, length = rows.shape
    if length == 0:
        return rows.to(torch.uint8), rows.new_zeros(count, 2**bits - 1)
    rows = rows.contiguous()
    ordered = rows.sort(dim=1).values
    # A bin is the range [start, stop) of a sorted row; consecutive bins share an end.
    ends = (length * torch.arange(2, device=rows.device)).expand(count, 2)
    thresholds = rows.new_empty(count, 0)
    for level in range(bits):
        start, stop = ends[:, :-1], ends[:, 1:]
        low = ordered.gather(1, ((start + stop - 1) // 2).clamp_(0, length - 1))
        high = ordered.gather(1, ((start + stop) // 2).clamp_(max=length - 1))
        wide = accumulation_dtype(rows.device)
        medians = ((low.to(wide) + high.to(wide)) / 2).to(torch.float32)
        parents = thresholds[:, ::2].repeat_interleave(2, dim=1) if level else medians
        centers = torch.where(stop > start, medians, parents)
        ends = _interleave(ends, torch.searchsorted(ordered, centers).clamp(start, stop))
        thresholds = _interleave(centers, thresholds)
    codes = torch.searchsorted(thresholds, rows, right=True, out_int32=True)
    return codes.to(torch.uint8), thresholds


def _interleave(outer: Tensor, inner: Tensor) -> Tensor:
    """Merge columns as ``outer[0], inner[0], outer[1], .., outer[-1]``; ``outer`` has one more than ``inner``."""
    pairs = torch.stack([outer[:, :-1], inner], dim=2).flatten(1)
    return torch.cat([pairs, outer[:, -1:]], dim=1)
