"""Device functions that the kernels of weights share. Comments say why; the formulas are those of ``functional``.

Floating-point division is written ``tl.div_rn``: plain ``/`` on float32 is not correctly rounded on CUDA.
"""

# Kernels are not typed: their arguments become values of the device.
# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def load_segment(table, index):
    """Weight, offset in it, offset in the result, length and first part of a segment."""
    row = table + index * 5
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit
def load_values(addresses, weight, offset, start, length, levels, TILE: tl.constexpr, WIDE: tl.constexpr):
    """Values ``[start, start + TILE)`` of a segment as float32, 0 past its end, and which are not past it."""
    source = tl.load(addresses + weight).to(levels.dtype) + offset
    if WIDE:  # tells the compiler that several values can be loaded at once
        source = tl.multiple_of(source, 16)
        length = length // 16 * 16
    index = start + tl.arange(0, TILE)
    valid = index < length
    return tl.load(source + index, mask=valid, other=0.0).to(tl.float32), valid


@triton.jit
def store_levels(levels, place, start, length, code, step, BITS: tl.constexpr, WIDE: tl.constexpr):
    """Write the level of each code."""
    TILE: tl.constexpr = code.shape[0]
    target = levels + place
    if WIDE:
        target = tl.multiple_of(target, 16)
        length = length // 16 * 16
    index = start + tl.arange(0, TILE)
    level = (2 * code - (2**BITS - 1)).to(tl.float32) * step
    tl.store(target + index, level.to(levels.dtype.element_ty), mask=index < length)


@triton.jit
def magnitude_bits(x):
    """``|x|`` as an integer: in the order of the magnitudes, NaN above infinity, so that a maximum keeps a NaN."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def first_step(bound, total, length, BITS: tl.constexpr, SCALE: tl.constexpr, BALANCED: tl.constexpr):
    """Scale from the largest magnitude and the sum of magnitudes; for least squares, where uniform codes start."""
    largest = tl.full((), 2**BITS - 1, tl.float32)
    limit = tl.full((), 3.4028234663852886e38 / (2**BITS - 1) * (1 - 2.0**-20), tl.float32)
    step = tl.div_rn(bound, largest)
    step = tl.where(step > limit, limit, step)  # not `minimum`, which would drop a NaN
    if SCALE == "unit":
        step = tl.full((), 1.0, tl.float32)
    elif SCALE != "max":
        mean = (total / length).to(tl.float32)
        if SCALE == "mean":
            step = tl.div_rn(1.25 * mean, largest)
        elif not BALANCED:
            start = tl.div_rn(BITS * mean, largest)
            step = tl.where(start > step, step, start)
    return step


@triton.jit
def uniform_code(x, step, BITS: tl.constexpr):
    """Code of the nearest level, of two equally near the lower."""
    half_step = tl.where(step == 0, tl.full((), 2.0**-149, tl.float32), step)
    largest: tl.constexpr = 2**BITS - 1
    code = tl.ceil((tl.div_rn(x, tl.zeros_like(x) + half_step) + (largest - 1)) * 0.5)
    code = tl.where(code > largest, largest, code)
    # A comparison with NaN is false: it gets a code in range, and a level of NaN.
    return tl.where(code > 0, code, 0.0).to(tl.int32)


@triton.jit
def squares(x, code, valid, BITS: tl.constexpr):
    """Sums ``<W, z>`` and ``<z, z>`` of the odd codes ``z``, for the least-squares scale."""
    z = 2 * code - (2**BITS - 1)
    # A product of a float32 value and an odd code is exact in float64; the largest sum of squares is 16384 * 255**2.
    product = tl.where(valid, x.to(tl.float64) * z.to(tl.float64), 0.0)
    return tl.sum(product, 0), tl.sum(tl.where(valid, z * z, 0), 0)


@triton.jit
def least_squares_step(product, power):
    """Scale from the sums of :func:`squares`, never negative."""
    ratio = product / power
    return tl.where(ratio < 0, 0.0, ratio).to(tl.float32)


@triton.jit
def is_last(arrivals, parts):
    """Whether this program is the last of ``parts`` to come here; what all of them stored before is then visible.

    The barrier orders the stores of a program before its arrival, and the arrival releases and acquires: a sum that
    the last program takes over the parts in order is the same whichever program it is.
    """
    tl.debug_barrier()
    return tl.atomic_add(arrivals, 1, sem="acq_rel") == parts - 1
