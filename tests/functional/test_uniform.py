import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from lightning_balq.functional import (
    dequantize,
    dorefa_codes,
    dorefa_fake_quantize,
    max_scale,
    mean_scale,
    uniform_codes,
    uniform_fake_quantize,
    uniform_scale,
)
from tests import reference

ALL_BITS = range(1, 9)
SCALES = ["max", "mean", "least_squares"]
KINDS = ["gaussian", "laplace", "student_t3", "ties", "integers"]


def assert_codes_equal_but_near_ties(codes, position, bits):
    """Check codes against the exact position of every value on the axis of codes, ``n x`` of ``Q_k``.

    Float32 places a value to within 2**-22 (n + 1) codes, four roundings of at most 2**-24 (n + 1) each, so that a
    value nearer than that to the border of two codes may have either; every other code is exact.
    """
    n = 2**bits - 1
    expected = np.clip(reference.rtz(position), 0, n)
    near_tie = np.abs(position - np.floor(position) - 0.5) <= 2.0**-22 * (n + 1)
    assert near_tie.mean() < 0.6  # not an empty claim
    np.testing.assert_array_equal(codes.numpy()[~near_tie], expected[~near_tie])
    assert (np.abs(codes.numpy() - expected) <= 1).all()


def squared_error(weight, scale, bits):
    """Error of the nearest levels at every scale, float64."""
    codes = reference.uniform_codes(weight[:, None], scale, bits)
    return np.square(weight[:, None].astype(np.float64) - scale * (2 * codes - (2**bits - 1))).sum(axis=0)


# --- Codes and levels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_uniform_quantizer(draw, kind, scale, bits):
    weight = draw(kind, (8, 100), seed=bits)
    step = uniform_scale(torch.from_numpy(weight), bits, scale=scale)
    codes = uniform_codes(torch.from_numpy(weight), step, bits)
    assert (codes.dtype, codes.shape) == (torch.uint8, weight.shape)
    n = 2**bits - 1
    position = n * np.clip(weight / (2.0 * n * step.double().numpy()) + 0.5, 0, 1)
    assert_codes_equal_but_near_ties(codes, position, bits)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("step", [2.0**-20, 1.0, 2.0**60])
def test_codes_equal_the_uniform_quantizer_exactly_ties_included(step, bits):
    # Quarters of a code, from two codes below the lowest level to two above the highest: exact in float32.
    quarters = torch.arange(-4 * (2**bits + 3), 4 * (2**bits + 3) + 1) / 4
    weight = quarters * 2 * step
    codes = uniform_codes(weight, torch.tensor([step]), bits)
    n = 2**bits - 1
    position = (quarters + n / 2).clamp(0, n).numpy()
    assert (position % 1 == 0.5).any()
    np.testing.assert_array_equal(codes.numpy(), reference.rtz(position))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_of_two_levels_equally_near_the_lower_is_taken(bits):
    levels = dequantize(torch.arange(2**bits), torch.tensor(1.0), bits)
    borders = (levels[1:] + levels[:-1]) / 2
    codes = uniform_codes(borders, torch.tensor([1.0]), bits)
    assert codes.tolist() == list(range(2**bits - 1))


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_every_value_gets_its_nearest_level(draw, granularity, scale, bits):
    weight = torch.from_numpy(draw("student_t3", (4, 100)))
    step = uniform_scale(weight, bits, scale=scale, granularity=granularity)
    levels = step[:, None] * torch.arange(-(2**bits) + 1, 2**bits, 2)
    nearest = (weight.unsqueeze(-1) - levels.unsqueeze(1)).abs().amin(dim=-1)
    result = uniform_fake_quantize(weight, bits, scale=scale, granularity=granularity)
    # A value near a border may take either level: float32 rounding of the weight's place among the codes.
    tolerance = 2.0**-21 * weight.abs().max().item()
    assert_close((weight - result).abs(), nearest, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", SCALES)
def test_per_channel_equals_per_tensor_of_every_channel_exactly(draw, scale):
    weight = torch.from_numpy(draw("laplace", (5, 4, 3, 3)))
    whole = uniform_fake_quantize(weight, 3, scale=scale, granularity="per_channel")
    each = [uniform_fake_quantize(channel, 3, scale=scale) for channel in weight]
    assert_close(whole, torch.stack(each), rtol=0, atol=0)


def test_default_scale_is_extremal_and_per_tensor(draw):
    weight = torch.from_numpy(draw("gaussian", (4, 5)))
    explicit = uniform_fake_quantize(weight, 2, scale="max", granularity="per_tensor")
    assert_close(uniform_fake_quantize(weight, 2), explicit, rtol=0, atol=0)
    assert_close(uniform_scale(weight, 2), max_scale(weight, 2), rtol=0, atol=0)
    assert_close(uniform_scale(weight, 2, scale="mean"), mean_scale(weight, 2), rtol=0, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_extremal_values_are_outermost_levels_at_max_scale(draw, bits):
    weight = torch.from_numpy(draw("laplace", 300))
    weight = torch.cat([weight, -weight])
    codes = uniform_codes(weight, max_scale(weight, bits), bits)
    assert codes[weight.argmax()] == 2**bits - 1
    assert codes[weight.argmin()] == 0


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_codes_are_those_of_the_float32_values(draw, dtype, bits):
    weight = (torch.from_numpy(draw("gaussian", (4, 300))).double() / 3).to(dtype)
    for scale in SCALES:
        step = uniform_scale(weight, bits, scale=scale)
        assert step.dtype == torch.float32
        assert_close(step, uniform_scale(weight.to(torch.float32), bits, scale=scale), rtol=0, atol=0)
        codes = uniform_codes(weight, step, bits)
        assert_close(codes, uniform_codes(weight.to(torch.float32), step, bits), rtol=0, atol=0)


# --- Edge cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)], ids=str)
def test_empty_weight_stays_empty(shape, granularity, scale):
    weight = torch.zeros(shape)
    assert uniform_fake_quantize(weight, 2, scale=scale, granularity=granularity).shape == shape
    assert dorefa_fake_quantize(weight, 2).shape == shape
    assert dorefa_fake_quantize(weight, 1).shape == shape


@pytest.mark.parametrize("scale", ["max", "least_squares"])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_scalar_weight_is_its_own_level(bits, scale):
    result = uniform_fake_quantize(torch.tensor(-2.0), bits, scale=scale)
    # At most five float32 roundings: those of the least-squares scale, and the level.
    assert_close(result, torch.tensor(-2.0), rtol=5 * 2**-24, atol=0)
    assert uniform_codes(torch.tensor(-2.0), torch.tensor([1.0]), bits).shape == ()


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("exponent", [-149, -120, 120], ids=lambda e: f"2**{e}")
def test_values_at_the_ends_of_float32_get_their_nearest_level(exponent, bits):
    weight = np.ldexp(np.arange(-255.0, 256.0), exponent).astype(np.float32)
    step = max_scale(torch.from_numpy(weight), bits)
    result = uniform_fake_quantize(torch.from_numpy(weight), bits).double().numpy()
    levels = step.double().numpy() * np.arange(-(2.0**bits) + 1, 2**bits, 2)
    nearest = np.abs(weight[:, None] - levels).min(axis=1)
    # Float32 rounding of the place among the codes; a subnormal level is rounded by up to 2**-149.
    tolerance = 2.0**-21 * np.abs(weight).max() + 2.0**-149
    np.testing.assert_allclose(np.abs(weight - result), nearest, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_largest_float32_stays_finite(bits):
    weight = torch.tensor([1.0, -1.0]) * torch.finfo(torch.float32).max
    assert uniform_fake_quantize(weight, bits).isfinite().all()


# --- Least squares ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_least_squares_at_1_bit_is_bwn(draw, kind, granularity):
    weight = draw(kind, (5, 100))
    rows = weight.reshape(1, -1) if granularity == "per_tensor" else weight
    expected = np.stack([reference.bwn(row) for row in rows]).astype(np.float32).reshape(weight.shape)
    expected = np.where(weight == 0, -np.abs(expected), expected)  # our tie takes the lower level
    result = uniform_fake_quantize(torch.from_numpy(weight), 1, scale="least_squares", granularity=granularity)
    # Float32 roundings of the quotients w / max|w|, of their mean and of the product with max|w|: 2**-24 each.
    assert_close(result, torch.from_numpy(expected), rtol=2**-22, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_least_squares_error_is_not_above_that_of_the_other_scales(draw, kind, bits):
    weight = draw(kind, 20_000)
    errors = {
        scale: squared_error(weight, uniform_scale(torch.from_numpy(weight), bits, scale=scale).numpy(), bits)[0]
        for scale in SCALES
    }
    assert errors["least_squares"] <= errors["max"]
    assert errors["least_squares"] <= errors["mean"]


# A claim about the distributions: 1.26 for Gaussian weights at 4 bits, and for a small layer it can be more.
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_least_squares_error_is_within_1_3_times_the_least(draw, seed, kind, bits):
    weight = draw(kind, 20_000, seed)
    scale = uniform_scale(torch.from_numpy(weight), bits, scale="least_squares").numpy()
    outermost = np.linspace(0.05, 1, 96) * np.abs(weight).max()
    least = squared_error(weight, outermost / (2**bits - 1), bits).min()
    assert squared_error(weight, scale, bits)[0] <= 1.3 * least


# --- DoReFa-Net ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student_t3", "uniform"])
def test_dorefa_equals_equation_9(draw, kind, bits):
    weight = draw(kind, (8, 100), seed=bits)
    codes = dorefa_codes(torch.from_numpy(weight), bits)
    t = np.tanh(weight.astype(np.float64))
    assert_codes_equal_but_near_ties(codes, (2**bits - 1) * (t / (2 * np.abs(t).max()) + 0.5), bits)

    result = dorefa_fake_quantize(torch.from_numpy(weight), bits)
    agree = codes.numpy() == np.round((reference.dorefa(weight, bits) + 1) / 2 * (2**bits - 1))
    assert agree.mean() > 0.99
    # The level is rounded to float32 once.
    expected = torch.from_numpy(reference.dorefa(weight, bits)).to(torch.float32)
    assert_close(result[agree], expected[agree], rtol=2**-23, atol=0)


def test_dorefa_at_1_bit_equals_bwn(draw):
    weight = draw("integers", (8, 100))
    assert (weight == 0).any()
    expected = torch.from_numpy(reference.bwn(weight)).to(torch.float32)
    assert_close(dorefa_fake_quantize(torch.from_numpy(weight), 1), expected, rtol=0, atol=0)


def test_dorefa_levels_do_not_depend_on_the_size_of_the_weight(draw):
    weight = torch.from_numpy(draw("gaussian", 1000))
    for factor in (1e-3, 1.0, 100.0):
        levels = dorefa_fake_quantize(weight * factor, 2).unique()
        assert_close(levels, torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 3, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["gaussian", "student_t3"])
def test_dorefa_gradient_is_that_of_tanh_and_its_maximum(draw, kind, bits):
    weight = torch.from_numpy(draw(kind, (4, 25))).requires_grad_()
    upstream = torch.from_numpy(draw("gaussian", (4, 25), seed=1))
    dorefa_fake_quantize(weight, bits).backward(upstream)
    expected = reference.dorefa_gradient(
        weight.detach().numpy().reshape(-1), upstream.double().numpy().reshape(-1)
    ).reshape(4, 25)
    # tanh and 1 - tanh**2 in float32, where the latter has an absolute error of some 2**-23.
    assert_close(weight.grad.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_dorefa_gradient_at_1_bit_is_the_upstream_gradient_exactly(draw):
    weight = torch.from_numpy(draw("gaussian", (4, 25))).requires_grad_()
    upstream = torch.from_numpy(draw("gaussian", (4, 25), seed=1))
    dorefa_fake_quantize(weight, 1).backward(upstream)
    assert_close(weight.grad, upstream, rtol=0, atol=0)


def test_dorefa_second_derivative_equals_finite_differences(draw):
    weight = torch.from_numpy(draw("gaussian", 12)).double()
    upstream = torch.from_numpy(draw("gaussian", 12, seed=1))

    def gradient(w):
        w = w.to(torch.float32).requires_grad_()
        return torch.autograd.grad((dorefa_fake_quantize(w, 2) * upstream).sum(), w, create_graph=True)[0], w

    first, leaf = gradient(weight)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    h = 2.0**-10
    for index in range(0, 12, 4):
        shift = torch.zeros(12).double()
        shift[index] = h
        difference = (gradient(weight + shift)[0].sum() - gradient(weight - shift)[0].sum()) / (2 * h)
        # Central differences: float32 noise of 1e-6 divided by 2 h, and curvature times h**2.
        assert_close(second[index], difference.detach(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_dorefa_by_channel_is_that_of_each_channel_alone(draw, bits):
    weight, upstream = (torch.from_numpy(draw("gaussian", (4, 5, 5), seed=seed)) for seed in (0, 1))
    weight = (weight * torch.tensor([0.0, 1e-3, 1.0, 5.0])[:, None, None]).requires_grad_()
    result = dorefa_fake_quantize(weight, bits, granularity="per_channel")
    result.backward(upstream)
    assert_close(
        dorefa_codes(weight, bits, granularity="per_channel"),
        torch.stack([dorefa_codes(channel, bits) for channel in weight]), rtol=0, atol=0,
    )  # fmt: skip
    for channel, levels, g, gradient in zip(weight.detach(), result, upstream, weight.grad, strict=True):
        channel.requires_grad_()
        expected = dorefa_fake_quantize(channel, bits)
        expected.backward(g)
        assert_close(levels, expected, rtol=0, atol=0)
        assert_close(gradient, channel.grad, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 8])
def test_dorefa_gradient_of_a_zero_weight_is_finite(bits):
    weight = torch.zeros(4, requires_grad=True)
    dorefa_fake_quantize(weight, bits).backward(torch.full((4,), 100.0))
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dorefa_in_low_precision_is_float32_result_rounded(draw, dtype, bits):
    weight = torch.from_numpy(draw("gaussian", (4, 50))).to(dtype)
    expected = dorefa_fake_quantize(weight.to(torch.float32), bits).to(dtype)
    assert_close(dorefa_fake_quantize(weight, bits), expected, rtol=0, atol=0)


# --- CUDA ------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_uniform_on_cuda_equals_uniform_on_cpu(draw, bits, granularity, scale):
    weight = torch.from_numpy(draw("gaussian", (64, 500)))
    options = {"scale": scale, "granularity": granularity}
    result = uniform_fake_quantize(weight.cuda(), bits, **options).cpu()
    assert_close(result, uniform_fake_quantize(weight, bits, **options), rtol=0, atol=0)


# --- Properties ------------------------------------------------------------------------------------------------------

properties = settings(deadline=None, derandomize=True, max_examples=100)
any_bits = st.integers(1, 8)
any_scale = st.sampled_from(SCALES)
moderate = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
moderate_weights = arrays(np.float32, st.integers(1, 40), elements=moderate)


@properties
@given(weight=moderate_weights, bits=any_bits, scale=any_scale)
def test_codes_of_any_weight_are_monotone_and_within_range(weight, bits, scale):
    step = uniform_scale(torch.from_numpy(weight), bits, scale=scale)
    codes = uniform_codes(torch.from_numpy(np.sort(weight)), step, bits).numpy().astype(int)
    assert (np.diff(codes) >= 0).all()
    assert codes[-1] <= 2**bits - 1


@properties
@given(
    integers=arrays(np.int32, st.integers(1, 40), elements=st.integers(-(2**20), 2**20)),
    bits=any_bits,
    scale=any_scale,
    exponent=st.integers(-60, 60),
)
def test_scaling_by_a_power_of_two_changes_no_code(integers, bits, scale, exponent):
    weight = integers.astype(np.float32)
    results = []
    for values in (weight, np.ldexp(weight, exponent)):
        values = torch.from_numpy(values)
        results.append(uniform_codes(values, uniform_scale(values, bits, scale=scale), bits))
    assert torch.equal(results[0], results[1])


@properties
@given(weight=moderate_weights, bits=any_bits)
def test_quantizing_the_levels_again_changes_no_code(weight, bits):
    step = max_scale(torch.from_numpy(weight), bits)
    codes = uniform_codes(torch.from_numpy(weight), step, bits)
    if step > 0:
        assert torch.equal(uniform_codes(dequantize(codes, step, bits), step, bits), codes)


@properties
@given(weight=moderate_weights)
def test_one_bit_fake_quantize_is_idempotent(weight):
    once = uniform_fake_quantize(torch.from_numpy(weight), 1)
    assert torch.equal(uniform_fake_quantize(once, 1), once)


@properties
@given(
    magnitudes=arrays(np.float32, st.integers(1, 40), elements=st.floats(2.0**-20, 2.0**20, width=32)),
    bits=any_bits,
)
def test_dorefa_codes_of_the_negated_weight_are_mirrored_off_the_ties(magnitudes, bits):
    weight = torch.from_numpy(magnitudes * np.where(np.arange(magnitudes.size) % 2, 1, -1).astype(np.float32))
    mirrored = 2**bits - 1 - dorefa_codes(-weight, bits).int()
    position = (2**bits - 1) / 2 * (weight.tanh() / weight.tanh().abs().max() + 1)
    off_ties = (position - position.floor() - 0.5).abs() > 1e-4 * 2**bits  # float32 rounding
    assert torch.equal(dorefa_codes(weight, bits).int()[off_ties], mirrored[off_ties])


def test_zeros_at_a_scale_of_zero_have_the_code_below_zero():
    assert_close(uniform_codes(torch.zeros(3), torch.zeros(1), 2), torch.ones(3, dtype=torch.uint8))
