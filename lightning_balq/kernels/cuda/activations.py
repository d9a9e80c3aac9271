"""Activation quantizer: levels, mask of the gradient and statistics in one launch, one read and one write."""

# Kernels are not typed: their arguments become values of the device.
# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_balq.kernels.cuda.primitives import is_last
from lightning_balq.kernels.cuda.segments import is_dense

_TILE = 4096
"""Values of one program."""

_LANES = 1024
"""Partial statistics that are reduced at a time."""


def activation_levels(x: Tensor, bits: int, *, range: Tensor, signed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels as of :func:`lightning_balq.functional.activation_fake_quantize`, mask of the gradient, and statistics.

    Args:
        x: floating point, any shape and layout.
        bits: width of a code in bits, 1 to 8.
        range: largest level, >= 0; float32 scalar on the device of ``x``.
        signed: whether the smallest level is ``-range`` instead of 0; boolean scalar on the device of ``x``.

    Returns:
        Levels, without gradient, in type, shape and memory format of ``x``; a boolean mask laid out alike, true where
        ``x`` lies inside the interval; and smallest value, largest value and mean magnitude of ``x``, float32 of shape
        ``(3,)``, the mean added in float64 and rounded once; all NaN if a value is, all 0 if there is none.
    """
    with torch.no_grad(), torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # untyped function "device_of"
        source = x.detach() if is_dense(x) else torch.empty_like(x).copy_(x)
        levels, mask = torch.empty_like(source), torch.empty_like(source, dtype=torch.bool)
        parts = -(-x.numel() // _TILE)
        if parts == 0:
            return levels, mask, x.new_zeros(3, dtype=torch.float32)
        statistics = x.new_empty(3, dtype=torch.float32)
        extremes = x.new_empty(2, parts, dtype=torch.float32)
        _quantize[(parts,)](
            source,
            levels,
            mask,
            range,
            signed,
            statistics,
            extremes,
            x.new_empty(parts, dtype=torch.float64),
            x.new_zeros(1, dtype=torch.int32),
            x.numel(),
            parts,
            BITS=bits,
            TILE=_TILE,
            LANES=_LANES,
            num_warps=4,
            enable_fp_fusion=False,  # products and sums round as in the plain form
        )
    return levels, mask, statistics


@triton.jit(do_not_specialize=["parts"])
def _quantize(
    source,
    levels,
    mask,
    range_pointer,
    signed_pointer,
    statistics,
    extremes,
    totals,
    arrivals,
    length,
    parts,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    valid = index < length
    values = tl.load(source + index, mask=valid, other=0.0)
    x = values.to(tl.float32)

    upper = tl.load(range_pointer).to(tl.float32)
    signed = tl.load(signed_pointer).to(tl.int32) != 0
    lower = tl.where(signed, -upper, 0.0)
    largest: tl.constexpr = 2**BITS - 1
    scale = tl.div_rn(tl.where(signed, 2 * upper, upper), tl.full((), largest, tl.float32))
    smallest_normal = tl.full((), 2.0**-126, tl.float32)
    scale = tl.where(scale < smallest_normal, smallest_normal, scale)
    # Clamped before rounding instead of after, which is the same. Comparisons, not `minimum`, so that NaN stays NaN.
    code = tl.div_rn(x - lower, tl.zeros_like(x) + scale)
    code = tl.where(code < 0, 0.0, code)
    code = tl.where(code > largest, largest, code)
    code = (code + 12582912.0) - 12582912.0  # at 1.5 * 2**23 a float32 has no fraction: rounds to even
    level = tl.where(x == 0, 0.0, code * scale + lower)
    tl.store(levels + index, level.to(levels.dtype.element_ty), mask=valid)
    inside = (x >= lower) & (x <= upper)  # in float32, as in the plain form, whatever the type of the values
    tl.store(mask + index, inside, mask=valid)

    part = tl.program_id(0)
    infinity = float("inf")
    tl.store(extremes + part, tl.min(tl.where(valid, x, infinity), 0))
    tl.store(extremes + parts + part, tl.max(tl.where(valid, x, -infinity), 0))
    tl.store(totals + part, tl.sum(tl.abs(values.to(tl.float64)), 0))
    if is_last(arrivals, parts):
        lanes = tl.arange(0, LANES)
        smallest = tl.full([LANES], infinity, tl.float32)
        biggest = tl.full([LANES], -infinity, tl.float32)
        total = tl.zeros([LANES], tl.float64)
        for begin in range(0, parts, LANES):
            found = begin + lanes < parts
            smallest = tl.minimum(smallest, tl.load(extremes + begin + lanes, mask=found, other=infinity))
            biggest = tl.maximum(biggest, tl.load(extremes + parts + begin + lanes, mask=found, other=-infinity))
            total += tl.load(totals + begin + lanes, mask=found, other=0.0)
        mean = (tl.sum(total, 0) / length).to(tl.float32)
        is_nan = mean != mean
        tl.store(statistics, tl.where(is_nan, mean, tl.min(smallest, 0)))
        tl.store(statistics + 1, tl.where(is_nan, mean, tl.max(biggest, 0)))
        tl.store(statistics + 2, mean)
