import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.testing import assert_close

from lightning_balq.functional import balanced_codes, balanced_fake_quantize, balanced_thresholds
from lightning_balq.functional.balanced import _sum_bins
from tests import reference

ALL_BITS = range(1, 9)
CENTERS = ["mean", "median"]
GRANULARITIES = ["per_tensor", "per_channel"]
SCALES = ["max", "mean", "least_squares"]


def expected_partition(weight, bits, center, granularity="per_tensor"):
    """Codes and thresholds of the reference, one partition for each row of the granularity."""
    rows = weight.reshape(1 if granularity == "per_tensor" else len(weight), -1)
    codes, thresholds = zip(*[reference.balanced_partition(row, bits, center) for row in rows], strict=True)
    return torch.from_numpy(np.stack(codes).reshape(weight.shape)), torch.from_numpy(np.stack(thresholds))


def assert_partition_equals_reference(weight, bits, center, granularity="per_tensor"):
    codes, thresholds = expected_partition(weight, bits, center, granularity)
    options = {"center": center, "granularity": granularity}
    assert_close(balanced_codes(torch.from_numpy(weight), bits, **options), codes, rtol=0, atol=0)
    assert_close(balanced_thresholds(torch.from_numpy(weight), bits, **options), thresholds, rtol=0, atol=0)


# --- The definition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student_t3", "uniform", "positive", "ties", "integers"])
def test_codes_and_thresholds_equal_literal_recursion_exactly(draw, kind, granularity, center, bits):
    assert_partition_equals_reference(draw(kind, (4, 200), seed=bits), bits, center, granularity)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(37,), (16, 8), (8, 5, 3), (4, 3, 3, 3), (2, 3, 3, 2, 2)], ids=str)
def test_codes_equal_literal_recursion_exactly_at_any_number_of_dimensions(draw, shape, granularity, center):
    assert_partition_equals_reference(draw("gaussian", shape), 3, center, granularity)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "ties"])
def test_levels_equal_literal_formula_but_for_smallest_element_of_bins(draw, kind, center, bits):
    weight = draw(kind, 500)
    codes = reference.balanced_partition(weight, bits, center)[0]
    smallest = np.array([weight[codes == code].min() for code in codes])
    drops = (codes > 0) & (weight == smallest)
    assert drops.any()

    level = np.abs(weight).max().astype(np.float64) * (2.0 * (codes - 1.0 * drops) / (2**bits - 1) - 1)
    literal = reference.balanced_quantization(weight, bits, center)
    # The same value by other float64 operations, each of which rounds by up to 2**-53.
    np.testing.assert_allclose(literal, level, rtol=0, atol=1e-15 * np.abs(weight).max())

    ours = balanced_fake_quantize(torch.from_numpy(weight), bits, center=center).numpy()
    # Two float32 roundings (scale, level) of numbers up to the largest magnitude: 2**-24 each.
    tolerance = 2**-23 * np.abs(weight).max()
    np.testing.assert_allclose(ours[~drops], literal[~drops], rtol=0, atol=tolerance)
    step = 2 * np.abs(weight).max() / (2**bits - 1)
    np.testing.assert_allclose(ours[drops], literal[drops] + step, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_fake_quantize_puts_every_code_on_its_level(draw, bits, center, granularity, scale):
    weight = draw("laplace", (6, 50))
    codes = expected_partition(weight, bits, center, granularity)[0].numpy()
    expected = np.empty_like(weight)
    for rows in [slice(None)] if granularity == "per_tensor" else range(len(weight)):
        step = {
            "max": reference.max_scale(weight[rows], bits),
            "mean": reference.mean_scale(weight[rows], bits),
            "least_squares": reference.least_squares_scale(weight[rows], codes[rows], bits),
        }[scale]
        expected[rows] = reference.levels(codes[rows], step, bits)
    result = balanced_fake_quantize(torch.from_numpy(weight), bits, center=center, scale=scale, granularity=granularity)
    # "max" has the same arithmetic; of the others the reference rounds the scale to float32 once, the package up to
    # four times (2**-24 each), and the level once.
    rtol = 0 if scale == "max" else 2**-21
    assert_close(result, torch.from_numpy(expected), rtol=rtol, atol=0)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("scale", SCALES)
def test_per_channel_equals_per_tensor_of_every_channel_exactly(draw, scale, center):
    weight = torch.from_numpy(draw("student_t3", (5, 4, 3, 3)))
    whole = balanced_fake_quantize(weight, 2, center=center, scale=scale, granularity="per_channel")
    each = [balanced_fake_quantize(channel, 2, center=center, scale=scale) for channel in weight]
    assert_close(whole, torch.stack(each), rtol=0, atol=0)


def test_defaults_are_the_paper(draw):
    weight = torch.from_numpy(draw("gaussian", (8, 9)))
    explicit = balanced_fake_quantize(weight, 2, center="mean", scale="max", granularity="per_tensor")
    assert_close(balanced_fake_quantize(weight, 2), explicit, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "expected"), [("gaussian", [0.213, 0.287]), ("laplace", [0.184, 0.316])], ids=str)
def test_two_bit_mean_bins_have_the_shares_of_the_distribution(draw, kind, expected):
    codes = balanced_codes(torch.from_numpy(draw(kind, 200_000)), bits=2)
    share = torch.bincount(codes.long(), minlength=4) / codes.numel()
    # Expected to 3 digits (5e-4); a share of 200 000 draws has deviation 1e-3, times 3.
    assert_close(share, torch.tensor([*expected, *reversed(expected)]), rtol=0, atol=3.5e-3)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_median_bins_have_equal_counts_when_values_differ(draw, bits):
    weight = torch.from_numpy(draw("student_t3", 5 * 2**bits))
    assert weight.unique().numel() == weight.numel()
    codes = balanced_codes(weight, bits, center="median")
    assert torch.bincount(codes.long()).tolist() == [5] * 2**bits


# 37.7 million elements, a large linear layer: some 20 s for both centers and 2 GiB.
@pytest.mark.parametrize("center", CENTERS)
def test_codes_of_a_large_linear_layer_equal_two_level_partition_exactly(center):
    weight = np.random.default_rng(0).standard_normal((4096, 9216), dtype=np.float32)
    middle = reference.center_of(weight, center)
    lower = reference.center_of(weight[weight < middle], center)
    upper = reference.center_of(weight[weight >= middle], center)
    expected = (weight >= lower).astype(np.uint8) + (weight >= middle) + (weight >= upper)
    codes = balanced_codes(torch.from_numpy(weight), bits=2, center=center)
    assert np.array_equal(codes.numpy(), expected)


# --- Thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", ["gaussian", "student_t3", "ties"])
def test_code_is_the_number_of_thresholds_up_to_the_value(draw, kind, granularity, center, bits):
    weight = torch.from_numpy(draw(kind, (4, 60)))
    thresholds = balanced_thresholds(weight, bits, center=center, granularity=granularity)
    assert thresholds.shape == (4 if granularity == "per_channel" else 1, 2**bits - 1)
    assert thresholds.dtype == torch.float32
    assert (thresholds.diff(dim=1) >= 0).all()
    codes = (weight.unsqueeze(-1) >= thresholds.unsqueeze(1)).sum(dim=-1).to(torch.uint8)
    result = balanced_codes(weight, bits, center=center, granularity=granularity)
    assert_close(result, codes, rtol=0, atol=0)


def test_statistics_carry_no_gradient(draw):
    weight = torch.from_numpy(draw("gaussian", (4, 8))).requires_grad_()
    for center in CENTERS:
        assert not balanced_thresholds(weight, 2, center=center).requires_grad
        assert not balanced_codes(weight, 2, center=center).requires_grad


# --- Memory layout and types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.t(),
        lambda w: w[:, ::3],
        lambda w: w[1::2],
        lambda w: w[:1].expand(6, -1),
        lambda w: w.view(12, 2, 15).permute(2, 0, 1),
    ],
    ids=["transposed", "every_third_column", "every_second_row", "expanded", "permuted"],
)
def test_codes_do_not_depend_on_strides(draw, view, granularity, center):
    weight = view(torch.from_numpy(draw("gaussian", (12, 30))))
    assert not weight.is_contiguous()
    codes, thresholds = expected_partition(weight.numpy().copy(order="C"), 3, center, granularity)
    options = {"center": center, "granularity": granularity}
    assert_close(balanced_codes(weight, 3, **options), codes, rtol=0, atol=0)
    assert_close(balanced_thresholds(weight, 3, **options), thresholds, rtol=0, atol=0)


@pytest.mark.parametrize("center", CENTERS)
def test_non_contiguous_weight_gives_no_performance_warning(draw, center):
    weight = torch.from_numpy(draw("gaussian", (16, 8))).t()
    torch.set_warn_always(True)  # else torch says it once per process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            balanced_codes(weight, 2, center=center, granularity="per_channel")
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_statistics_are_those_of_the_float32_values(draw, granularity, dtype, center):
    weight = torch.from_numpy(draw("gaussian", (4, 300))).to(torch.float64) / 3
    weight = weight.to(dtype)
    codes, thresholds = expected_partition(weight.to(torch.float32).numpy(), 4, center, granularity)
    options = {"center": center, "granularity": granularity}
    assert_close(balanced_codes(weight, 4, **options), codes, rtol=0, atol=0)
    assert_close(balanced_thresholds(weight, 4, **options), thresholds, rtol=0, atol=0)


# --- Edge cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("value", [0.0, 0.1, -0.1, 3e38, -3e38, 1e-45, -1e-45])
def test_equal_values_have_the_highest_code(value, center, bits):
    weight = torch.full((3, 7), value)
    assert (balanced_codes(weight, bits, center=center) == 2**bits - 1).all()
    assert (balanced_thresholds(weight, bits, center=center) == weight[0, 0]).all()


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize(
    "values",
    [[1.5], [2.0, 1.0], [1.0, -1.0, 2.0], [0.0, -0.0, 1.0], [1.0] * 9 + [2.0], [-5.0] + [0.0] * 9, [0.0, 1.0] * 4],
    ids=str,
)
def test_codes_equal_literal_recursion_with_fewer_values_than_bins(values, center, bits):
    assert_partition_equals_reference(np.array(values, dtype=np.float32), bits, center)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_scalar_weight_is_one_value(bits, center):
    assert balanced_codes(torch.tensor(2.0), bits, center=center).tolist() == 2**bits - 1
    result = balanced_fake_quantize(torch.tensor(2.0), bits, center=center)
    assert_close(result, torch.tensor(2.0), rtol=2**-23, atol=0)  # two float32 roundings, scale and level


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)], ids=str)
def test_empty_weight_has_empty_codes_and_thresholds_of_zero(shape, granularity, center):
    weight = torch.zeros(shape)
    options = {"center": center, "granularity": granularity}
    codes = balanced_codes(weight, 2, **options)
    assert (codes.shape, codes.dtype) == (weight.shape, torch.uint8)
    rows = shape[0] if granularity == "per_channel" else 1
    assert_close(balanced_thresholds(weight, 2, **options), torch.zeros(rows, 3), rtol=0, atol=0)
    for scale in SCALES:
        assert balanced_fake_quantize(weight, 2, scale=scale, **options).shape == shape


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("factor", [2.0**-140, 2.0**-149, 2.0**122], ids=["subnormal", "smallest_subnormal", "huge"])
def test_codes_equal_literal_recursion_at_the_ends_of_float32(factor, bits, center):
    integers = np.random.default_rng(0).integers(-63, 64, 300)
    weight = np.ldexp(integers.astype(np.float64), int(np.log2(factor))).astype(np.float32)
    assert np.isfinite(weight).all()
    assert weight.any()
    assert_partition_equals_reference(weight, bits, center)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_huge_weights_stay_finite(bits, scale, center):
    weight = torch.tensor([3e38, -3e38, 1e38, -1e38, 2e38, -2e38, 2.5e37, -2.5e37])
    assert balanced_fake_quantize(weight, bits, center=center, scale=scale).isfinite().all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_largest_float32_stays_finite(bits):
    weight = torch.tensor([1.0, -1.0]) * torch.finfo(torch.float32).max
    assert balanced_fake_quantize(weight, bits).isfinite().all()


# --- Reproducibility -------------------------------------------------------------------------------------------------


@pytest.fixture
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)  # also fills new memory with NaN, so that what is not written shows
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic_algorithms")
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_deterministic_algorithms_change_nothing(draw, granularity, center):
    assert_partition_equals_reference(draw("gaussian", (8, 300)), 4, center, granularity)


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scale", SCALES)
def test_number_of_threads_changes_nothing(draw, scale, granularity, center):
    weight = torch.from_numpy(draw("gaussian", (128, 1024)))  # large enough that torch does use two threads
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(balanced_fake_quantize(weight, 3, center=center, scale=scale, granularity=granularity))
    assert_close(results[0], results[1], rtol=0, atol=0)


class OnAccelerator(torch.Tensor):
    """A tensor of the CPU that says it is on an accelerator, so that the code for accelerators runs."""

    device = SimpleNamespace(type="cuda")


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("kind", ["gaussian", "ties"])
def test_bin_sums_are_the_same_on_accelerators(draw, kind, bits):
    # Multiples of 2**-10 below 2**5 have exact sums in float64, so that the order of summation cannot matter.
    rows = torch.from_numpy(draw(kind, (5, 400))).mul(1024).round().div(1024)
    codes = torch.randint(2**bits, rows.shape, generator=torch.Generator().manual_seed(0))
    totals, members = _sum_bins(rows, codes, 2**bits)
    other_totals, other_members = _sum_bins(rows.as_subclass(OnAccelerator), codes, 2**bits)
    assert_close(other_totals.as_subclass(torch.Tensor), totals, rtol=0, atol=0)
    assert_close(other_members.as_subclass(torch.Tensor), members, rtol=0, atol=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_codes_of_the_branch_for_accelerators_equal_literal_recursion_exactly(draw, bits, granularity):
    weight = draw("gaussian", (5, 400))
    codes = balanced_codes(torch.from_numpy(weight).as_subclass(OnAccelerator), bits, granularity=granularity)
    expected = expected_partition(weight, bits, "mean", granularity)[0]
    assert_close(codes.as_subclass(torch.Tensor), expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", ["gaussian", "ties"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_on_cuda_equal_codes_on_cpu(draw, bits, kind, granularity, center):
    weight = torch.from_numpy(draw(kind, (64, 500)))
    options = {"center": center, "granularity": granularity}
    codes = balanced_codes(weight.cuda(), bits, **options).cpu()
    thresholds = balanced_thresholds(weight.cuda(), bits, **options).cpu()
    assert_close(codes, balanced_codes(weight, bits, **options), rtol=0, atol=0)
    assert_close(thresholds, balanced_thresholds(weight, bits, **options), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_levels_on_cuda_equal_levels_on_cpu(draw, bits, scale):
    weight = torch.from_numpy(draw("gaussian", (64, 500)))
    result = balanced_fake_quantize(weight.cuda(), bits, scale=scale).cpu()
    assert_close(result, balanced_fake_quantize(weight, bits, scale=scale), rtol=0, atol=0)


# --- Properties ------------------------------------------------------------------------------------------------------

properties = settings(deadline=None, derandomize=True, max_examples=100)
any_bits = st.integers(1, 8)
any_center = st.sampled_from(CENTERS)
finite_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)  # subnormal and huge ones included
finite_weights = arrays(np.float32, st.integers(1, 40), elements=finite_floats)


@st.composite
def weights_with_exact_sums(draw_from):
    """Integers of 20 bits times one power of two: sums are exact in float64, whatever their order.

    The powers of two make every value subnormal, normal or huge.
    """
    integers = draw_from(arrays(np.int32, st.integers(1, 40), elements=st.integers(-(2**20), 2**20)))
    return np.ldexp(integers.astype(np.float32), draw_from(st.sampled_from([-149, -140, -20, 0, 107])))


@properties
@given(weight=finite_weights, bits=any_bits)
def test_median_codes_of_any_finite_weight_equal_literal_recursion(weight, bits):
    assert_partition_equals_reference(weight, bits, "median")


@properties
@given(weight=weights_with_exact_sums(), bits=any_bits)
def test_mean_codes_of_any_weight_with_exact_sums_equal_literal_recursion(weight, bits):
    assert_partition_equals_reference(weight, bits, "mean")


@properties
@given(weight=finite_weights, bits=any_bits, center=any_center)
def test_codes_of_any_finite_weight_are_monotone_and_within_range(weight, bits, center):
    codes = balanced_codes(torch.from_numpy(weight), bits, center=center).numpy()
    in_order = codes[np.argsort(weight, kind="stable")].astype(int)
    assert (np.diff(in_order) >= 0).all()
    assert in_order[-1] <= 2**bits - 1


@properties
@given(weight=finite_weights, bits=any_bits, center=any_center)
def test_equal_values_of_any_finite_weight_have_equal_codes(weight, bits, center):
    codes = balanced_codes(torch.from_numpy(np.concatenate([weight, weight])), bits, center=center)
    assert torch.equal(codes[: weight.size], codes[weight.size :])


@properties
@given(weight=finite_weights, bits=any_bits, center=any_center)
def test_thresholds_of_any_finite_weight_ascend_and_give_the_codes(weight, bits, center):
    thresholds = balanced_thresholds(torch.from_numpy(weight), bits, center=center).numpy()[0]
    assert np.isfinite(thresholds).all()
    assert (thresholds[1:] >= thresholds[:-1]).all()
    codes = balanced_codes(torch.from_numpy(weight), bits, center=center).numpy()
    assert np.array_equal(codes, (weight[:, None] >= thresholds).sum(axis=1))


@properties
@given(weight=weights_with_exact_sums(), bits=any_bits, center=any_center, seed=st.integers(0, 99))
def test_codes_move_with_the_values_when_these_are_permuted(weight, bits, center, seed):
    order = np.random.default_rng(seed).permutation(weight.size)
    codes = balanced_codes(torch.from_numpy(weight), bits, center=center)
    permuted = balanced_codes(torch.from_numpy(weight[order]), bits, center=center)
    assert torch.equal(permuted, codes[torch.from_numpy(order)])


@properties
@given(
    integers=arrays(np.int32, st.integers(1, 40), elements=st.integers(-(2**20), 2**20)),
    bits=any_bits,
    center=any_center,
    exponent=st.integers(-80, 80),
)
def test_scaling_by_a_power_of_two_changes_no_code(integers, bits, center, exponent):
    weight = integers.astype(np.float32)
    codes = balanced_codes(torch.from_numpy(weight), bits, center=center)
    scaled = balanced_codes(torch.from_numpy(np.ldexp(weight, exponent)), bits, center=center)
    assert torch.equal(scaled, codes)


@st.composite
def distinct_integers_in_equal_bins(draw_from):
    """Bits and a weight of distinct integers whose median bins have one size, so that no value is a threshold."""
    bits, members = draw_from(st.integers(1, 4)), draw_from(st.integers(1, 4))
    size = members * 2**bits
    values = draw_from(st.lists(st.integers(-(2**20), 2**20), min_size=size, max_size=size, unique=True))
    return bits, np.array(values, dtype=np.float32)


@properties
@given(case=distinct_integers_in_equal_bins())
def test_median_codes_of_the_negated_weight_are_mirrored(case):
    bits, weight = case
    codes = balanced_codes(torch.from_numpy(weight), bits, center="median")
    mirrored = balanced_codes(torch.from_numpy(-weight), bits, center="median")
    assert torch.equal(mirrored, 2**bits - 1 - codes)


@properties
@given(case=distinct_integers_in_equal_bins(), center=any_center)
def test_quantizing_levels_of_equal_bins_again_changes_no_code(case, center):
    bits, weight = case
    quantized = balanced_fake_quantize(torch.from_numpy(weight), bits, center="median")
    codes = balanced_codes(torch.from_numpy(weight), bits, center="median")
    assert torch.equal(balanced_codes(quantized, bits, center=center), codes)


@properties
@given(
    weight=arrays(
        np.float32,
        array_shapes(min_dims=1, max_dims=5, max_side=5),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    bits=any_bits,
    center=any_center,
    scale=st.sampled_from(SCALES),
)
def test_fake_quantize_of_any_weight_takes_at_most_as_many_values_as_codes(weight, bits, center, scale):
    result = balanced_fake_quantize(torch.from_numpy(weight), bits, center=center, scale=scale)
    assert result.shape == weight.shape
    assert result.isfinite().all()
    assert result.unique().numel() <= 2**bits
