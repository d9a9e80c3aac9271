r"""Balanced and uniform weight quantizers over all weights of a model.

Segments of up to 16384 values take one launch for each size among at most six: a program holds a segment in registers,
reads it once and writes its levels once. Longer segments are cut in parts of 4096 values and take one launch for each
level of the partition, one for the levels, and one more for a least-squares scale (uniform: two launches, four for
least squares); each reads the weight once. The program that ends last in a segment adds up what the others found.

Work: a level of the balanced partition compares every value with each of its bins, :math:`2^b - 1` comparisons and
float64 additions for each value in all.

Exactness. A sum of ``N`` float32 values is taken in float64, in an order that depends on ``N`` alone: its error is at
most :math:`N 2^{-53} \sum|w|`, and in practice :math:`\log_2 N` instead of ``N``. A threshold is such a sum divided by
the number of values and rounded to float32 once, so it equals the one of :mod:`lightning_balq.functional` unless the
mean lies that near to the middle of two float32 numbers, and then is the neighbouring one; sums of equal values are
exact, so that ties are split as they are there. The same holds for a scale that is a mean or a fit; ``scale="max"``
and all the rest is the same arithmetic, bit for bit.
"""

# Kernels are not typed: their arguments become values of the device.
# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_balq.functional._checks import BalancedScale, Granularity, Scale
from lightning_balq.kernels.cuda.primitives import (
    first_step,
    is_last,
    least_squares_step,
    load_segment,
    load_values,
    magnitude_bits,
    squares,
    store_levels,
    uniform_code,
)
from lightning_balq.kernels.cuda.segments import TILES, Batch, Group, quantize

_LANES = 1024
"""Partial sums that are added up at a time."""

_REFINEMENTS = 2
"""Rounds of least squares for uniform codes, as in :mod:`lightning_balq.functional.uniform`."""


def balanced_levels(
    weights: Sequence[Tensor], bits: int, *, scale: BalancedScale, granularity: Granularity
) -> list[Tensor]:
    """Levels of balanced quantization at the mean, as of :func:`lightning_balq.functional.balanced_fake_quantize`.

    Args:
        weights: floating point, any shape and layout, on one device; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        scale: ``"max"``, ``"mean"``, ``"least_squares"`` or ``"unit"``.
        granularity: statistics for each weight or for each output channel.

    Returns:
        For each weight its levels, without gradient: type, shape and memory format of the weight. Those of one type
        share a storage.
    """
    return quantize(weights, granularity, lambda batch: _launch(batch, bits, scale, balanced=True))


def uniform_levels(weights: Sequence[Tensor], bits: int, *, scale: Scale, granularity: Granularity) -> list[Tensor]:
    """Levels of uniform quantization, as of :func:`lightning_balq.functional.uniform_fake_quantize`.

    Args:
        weights: floating point, any shape and layout, on one device; dim 0 is the output channel.
        bits: width of a code in bits, 1 to 8.
        scale: ``"max"``, ``"mean"`` or ``"least_squares"``.
        granularity: statistics for each weight or for each output channel.

    Returns:
        For each weight its levels, without gradient: type, shape and memory format of the weight. Those of one type
        share a storage.
    """
    return quantize(weights, granularity, lambda batch: _launch(batch, bits, scale, balanced=False))


def _launch(batch: Batch, bits: int, scale: BalancedScale, *, balanced: bool) -> None:
    for group in batch.layout.short:
        _quantize_short[(len(group.table),)](
            batch.addresses,
            group.table,
            batch.levels,
            BITS=bits,
            SCALE=scale,
            BALANCED=balanced,
            TILE=group.tile,
            WIDE=batch.aligned and group.even,
            num_warps=TILES[group.tile],
            enable_fp_fusion=False,
        )
    if batch.layout.long is not None:
        _launch_long(batch, batch.layout.long, bits, scale, balanced=balanced)


def _launch_long(batch: Batch, group: Group, bits: int, scale: BalancedScale, *, balanced: bool) -> None:
    segments, parts = len(group.table), len(group.owners)
    bins = 2 ** (bits - 1) if balanced else 1
    refinements = 0 if scale != "least_squares" else 1 if balanced else _REFINEMENTS
    steps = batch.addresses.new_empty(segments, dtype=torch.float32)
    thresholds = steps.new_empty(segments, 2**bits if balanced else 0)
    sums = steps.new_empty(bins, parts, dtype=torch.float64)
    members = steps.new_empty(bins, parts, dtype=torch.int32)
    totals = steps.new_empty(parts, dtype=torch.float64)
    arrivals = steps.new_zeros(bits + refinements, segments, dtype=torch.int32)
    common = batch.addresses, group.table, group.owners, batch.levels, steps
    scratch = thresholds, sums, members, arrivals
    fixed = {
        "BITS": bits,
        "TILE": group.tile,
        "WIDE": batch.aligned and group.even,
        "enable_fp_fusion": False,  # products and sums round as in the plain form
    }
    reducing = fixed | {"LANES": _LANES}
    _measure[(parts,)](*common, *scratch, totals, SCALE=scale, BALANCED=balanced, num_warps=8, **reducing)
    for level in range(1, bits if balanced else 1):
        _split[(parts,)](*common, *scratch, segments, parts, LEVEL=level, num_warps=4, **reducing)
    for row in range(bits, bits + refinements):
        _fit[(parts,)](*common, *scratch, segments, row, BALANCED=balanced, num_warps=8, **reducing)
    _place[(parts,)](*common, thresholds, BALANCED=balanced, num_warps=8, **fixed)


@triton.jit
def _quantize_short(
    addresses,
    table,
    levels,
    BITS: tl.constexpr,
    SCALE: tl.constexpr,
    BALANCED: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    weight, offset, place, length, _ = load_segment(table, tl.program_id(0))
    x, valid = load_values(addresses, weight, offset, 0, length, levels, TILE, WIDE)
    bound = tl.max(magnitude_bits(x), 0).to(tl.float32, bitcast=True)
    total = tl.sum(tl.abs(x).to(tl.float64), 0)
    step = first_step(bound, total, length, BITS, SCALE, BALANCED)
    if BALANCED:
        wide = x.to(tl.float64)
        # Bins are the nodes of a binary tree, numbered from the root, 1, level by level; padding is at 0.
        node = valid.to(tl.int32)
        for bin in range(1, 2**BITS):
            inside = node == bin
            count = tl.sum(inside.to(tl.int32), 0)
            center = tl.sum(tl.where(inside, wide, 0.0), 0) / tl.where(count > 0, count, 1)
            node = tl.where(inside, 2 * bin + (x >= center.to(tl.float32)).to(tl.int32), node)
        code = node - 2**BITS
        if SCALE == "least_squares":
            product, power = squares(x, code, valid, BITS)
            step = least_squares_step(product, power)
    else:
        code = uniform_code(x, step, BITS)
        if SCALE == "least_squares":
            for _ in tl.static_range(2):
                product, power = squares(x, code, valid, BITS)
                step = least_squares_step(product, power)
                code = uniform_code(x, step, BITS)
    store_levels(levels, place, 0, length, code, step, BITS, WIDE)


@triton.jit
def _load_part(addresses, table, owners, levels, TILE: tl.constexpr, WIDE: tl.constexpr):
    """Values of this program, which are not past the end, and their segment."""
    segment = tl.load(owners + tl.program_id(0))
    weight, offset, _, length, first = load_segment(table, segment)
    start = (tl.program_id(0) - first) * TILE
    x, valid = load_values(addresses, weight, offset, start, length, levels, TILE, WIDE)
    return x, valid, segment


@triton.jit
def _parts(table, segment, TILE: tl.constexpr):
    """First part of a segment and how many it has."""
    _, _, _, length, first = load_segment(table, segment)
    return first, (length + TILE - 1) // TILE


@triton.jit
def _descend(x, valid, thresholds, LEVEL: tl.constexpr):
    """Node of each value at a level of the tree. Padding starts at 0 and stays below the nodes of a level."""
    node = valid.to(tl.int32)
    for _ in tl.static_range(LEVEL):
        node = 2 * node + (x >= tl.load(thresholds + node)).to(tl.int32)
    return node


@triton.jit
def _code(x, valid, thresholds, step, BITS: tl.constexpr, BALANCED: tl.constexpr):
    return _descend(x, valid, thresholds, BITS) - 2**BITS if BALANCED else uniform_code(x, step, BITS)


@triton.jit
def _measure(
    addresses,
    table,
    owners,
    levels,
    steps,
    thresholds,
    sums,
    members,
    arrivals,
    totals,
    SCALE: tl.constexpr,
    BALANCED: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Scale from magnitudes, largest magnitude and, of balanced codes, the first threshold."""
    x, _, segment = _load_part(addresses, table, owners, levels, TILE, WIDE)
    first, parts = _parts(table, segment, TILE)
    part = tl.program_id(0)
    tl.store(members + part, tl.max(magnitude_bits(x), 0))
    if SCALE != "max":
        tl.store(totals + part, tl.sum(tl.abs(x).to(tl.float64), 0))
    if BALANCED:
        tl.store(sums + part, tl.sum(x.to(tl.float64), 0))
    if is_last(arrivals + segment, parts):
        lanes = tl.arange(0, LANES)
        bits = tl.zeros([LANES], tl.int32)
        total = tl.zeros([LANES], tl.float64)
        sum = tl.zeros([LANES], tl.float64)
        for begin in range(0, parts, LANES):
            found = begin + lanes < parts
            bits = tl.maximum(bits, tl.load(members + first + begin + lanes, mask=found, other=0))
            if SCALE != "max":
                total += tl.load(totals + first + begin + lanes, mask=found, other=0.0)
            if BALANCED:
                sum += tl.load(sums + first + begin + lanes, mask=found, other=0.0)
        length = tl.load(table + segment * 5 + 3)
        bound = tl.max(bits, 0).to(tl.float32, bitcast=True)
        tl.store(steps + segment, first_step(bound, tl.sum(total, 0), length, BITS, SCALE, BALANCED))
        if BALANCED:
            center = (tl.sum(sum, 0) / length).to(tl.float32)
            tl.store(thresholds + segment * 2**BITS + 1, center)


@triton.jit(do_not_specialize=["segments", "all_parts"])
def _split(
    addresses,
    table,
    owners,
    levels,
    steps,
    thresholds,
    sums,
    members,
    arrivals,
    segments,
    all_parts,
    LEVEL: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Thresholds of one level of the tree."""
    x, valid, segment = _load_part(addresses, table, owners, levels, TILE, WIDE)
    first, parts = _parts(table, segment, TILE)
    thresholds += segment * 2**BITS
    node = _descend(x, valid, thresholds, LEVEL)
    wide = x.to(tl.float64)
    part = tl.program_id(0)
    for bin in range(2**LEVEL):
        inside = node == bin + 2**LEVEL
        tl.store(sums + bin * all_parts + part, tl.sum(tl.where(inside, wide, 0.0), 0))
        tl.store(members + bin * all_parts + part, tl.sum(inside.to(tl.int32), 0))
    if is_last(arrivals + LEVEL * segments + segment, parts):
        BINS: tl.constexpr = 2**LEVEL if LEVEL < 4 else 16
        PARTS: tl.constexpr = LANES // BINS
        for bin in range(0, 2**LEVEL, BINS):
            bins = bin + tl.arange(0, BINS)
            total = tl.zeros([BINS, PARTS], tl.float64)
            count = tl.zeros([BINS, PARTS], tl.int32)
            for begin in range(0, parts, PARTS):
                column = begin + tl.arange(0, PARTS)
                index = bins[:, None] * all_parts + first + column[None, :]
                found = (bins[:, None] >= 0) & (column[None, :] < parts)
                total += tl.load(sums + index, mask=found, other=0.0)
                count += tl.load(members + index, mask=found, other=0)
            # No value comes to the threshold of an empty bin.
            counts = tl.sum(count, 1)
            centers = tl.sum(total, 1) / tl.where(counts > 0, counts, 1)
            tl.store(thresholds + 2**LEVEL + bins, centers.to(tl.float32))


@triton.jit(do_not_specialize=["segments", "row"])
def _fit(
    addresses,
    table,
    owners,
    levels,
    steps,
    thresholds,
    sums,
    members,
    arrivals,
    segments,
    row,
    BALANCED: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Least-squares scale for the codes at the present scale."""
    x, valid, segment = _load_part(addresses, table, owners, levels, TILE, WIDE)
    first, parts = _parts(table, segment, TILE)
    code = _code(x, valid, thresholds + segment * 2**BITS, tl.load(steps + segment), BITS, BALANCED)
    product, power = squares(x, code, valid, BITS)
    tl.store(sums + tl.program_id(0), product)
    tl.store(members + tl.program_id(0), power)
    if is_last(arrivals + row * segments + segment, parts):
        lanes = tl.arange(0, LANES)
        products = tl.zeros([LANES], tl.float64)
        powers = tl.zeros([LANES], tl.int64)
        for begin in range(0, parts, LANES):
            found = begin + lanes < parts
            products += tl.load(sums + first + begin + lanes, mask=found, other=0.0)
            powers += tl.load(members + first + begin + lanes, mask=found, other=0)
        tl.store(steps + segment, least_squares_step(tl.sum(products, 0), tl.sum(powers, 0)))


@triton.jit
def _place(
    addresses,
    table,
    owners,
    levels,
    steps,
    thresholds,
    BALANCED: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write the levels."""
    x, valid, segment = _load_part(addresses, table, owners, levels, TILE, WIDE)
    _, _, place, length, first = load_segment(table, segment)
    start = (tl.program_id(0) - first) * TILE
    step = tl.load(steps + segment)
    code = _code(x, valid, thresholds + segment * 2**BITS, step, BITS, BALANCED)
    store_levels(levels, place, start, length, code, step, BITS, WIDE)
