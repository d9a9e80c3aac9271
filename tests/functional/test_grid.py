"""The grid and its estimator, and what every weight quantizer inherits from them."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_balq.functional import (
    balanced_codes,
    balanced_fake_quantize,
    dequantize,
    dorefa_codes,
    dorefa_fake_quantize,
    least_squares_scale,
    max_scale,
    straight_through,
    uniform_codes,
    uniform_fake_quantize,
    uniform_scale,
)
from lightning_balq.functional.grid import connect
from tests import reference
from tests.helpers import assert_equal, randn

ALL_BITS = range(1, 9)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
QUANTIZERS = {
    "balanced_mean": lambda w, bits, **options: balanced_fake_quantize(w, bits, center="mean", **options),
    "balanced_median": lambda w, bits, **options: balanced_fake_quantize(w, bits, center="median", **options),
    "uniform": uniform_fake_quantize,
}
SCALES = ["max", "mean", "least_squares"]
GRANULARITIES = ["per_tensor", "per_channel"]


@pytest.fixture(params=[f"{name}-{scale}" for name in QUANTIZERS for scale in SCALES] + ["dorefa"])
def quantizer(request):
    """Every weight quantizer as a function of weight and bits."""
    if request.param == "dorefa":
        return dorefa_fake_quantize
    name, scale = request.param.split("-")
    return lambda weight, bits, **options: QUANTIZERS[name](weight, bits, scale=scale, **options)


# --- dequantize ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
def test_levels_are_odd_integers_times_scale_exactly(bits):
    codes = torch.arange(2**bits, dtype=torch.uint8)
    expected = torch.from_numpy(reference.levels(codes.numpy(), 0.3, bits))
    assert_close(dequantize(codes, torch.tensor(0.3), bits), expected, rtol=0, atol=0)
    odd = dequantize(codes, torch.tensor(1.0), bits)
    assert (odd % 2 == 1).all()
    assert_close(odd, -odd.flip(0), rtol=0, atol=0)


@pytest.mark.parametrize("scale_shape", [(), (1,), (4,)], ids=str)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 2)], ids=str)
def test_scale_belongs_to_the_first_dimension(shape, scale_shape):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(8, shape, generator=generator)
    scale = torch.rand(scale_shape, generator=generator)
    expected = [reference.levels(c.numpy(), s.item(), 3) for c, s in zip(codes, scale.expand(4), strict=True)]
    assert_close(dequantize(codes, scale, 3), torch.from_numpy(np.stack(expected)), rtol=0, atol=0)


def test_levels_of_a_scalar_code_are_a_scalar():
    for scale in (torch.tensor(0.5), torch.tensor([0.5])):
        assert_close(dequantize(torch.tensor(3), scale, 2), torch.tensor(1.5), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_codes_may_have_any_integer_type(dtype):
    levels = dequantize(torch.arange(256).to(dtype), torch.tensor(1.0), 8)
    assert_close(levels, torch.arange(-255.0, 256.0, 2.0), rtol=0, atol=0)


# --- Inputs stay as they were ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_codes_given_are_not_changed(dtype):
    codes = torch.tensor([0, 1, 2, 3], dtype=dtype)
    dequantize(codes, torch.tensor(1.0), 2)
    assert codes.tolist() == [0, 1, 2, 3]
    least_squares_scale(torch.tensor([-2.0, -1.0, 1.0, 2.0]), codes, 2)
    assert codes.tolist() == [0, 1, 2, 3]


def test_weight_given_is_not_changed(draw, quantizer):
    weight = torch.from_numpy(draw("gaussian", (4, 5)))
    before = weight.clone()
    for bits in (1, 2, 8):
        quantizer(weight, bits)
        balanced_codes(weight, bits)
        balanced_codes(weight, bits, center="median")
        uniform_codes(weight, max_scale(weight, bits), bits)
        dorefa_codes(weight, bits)
        assert torch.equal(weight, before)


# --- Results lie exactly on the levels -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scale", SCALES)
def test_uniform_results_are_levels_rounded_to_the_type_exactly(draw, scale, granularity, dtype, bits):
    weight = torch.from_numpy(draw("gaussian", (8, 64))).to(dtype).requires_grad_()
    step = uniform_scale(weight, bits, scale=scale, granularity=granularity)
    levels = dequantize(uniform_codes(weight, step, bits), step, bits)
    result = uniform_fake_quantize(weight, bits, scale=scale, granularity=granularity)
    assert_close(result.detach(), levels.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("center", ["mean", "median"])
def test_balanced_results_are_levels_rounded_to_the_type_exactly(draw, center, granularity, dtype, bits):
    weight = torch.from_numpy(draw("gaussian", (8, 64))).to(dtype).requires_grad_()
    codes = balanced_codes(weight, bits, center=center, granularity=granularity)
    levels = dequantize(codes, max_scale(weight, bits, granularity=granularity), bits)
    result = balanced_fake_quantize(weight, bits, center=center, granularity=granularity)
    assert_close(result.detach(), levels.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_take_at_most_as_many_values_as_codes(draw, quantizer, dtype, bits):
    weight = torch.from_numpy(draw("student_t3", 5000)).to(dtype)
    result = quantizer(weight, bits)
    assert (result.dtype, result.shape) == (weight.dtype, weight.shape)
    assert result.unique().numel() <= 2**bits


# The tightest case is bfloat16 at 8 bits: 256 levels, 256 values between a power of two and its negative half.
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("center", ["mean", "median"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_large_weight_takes_all_levels_in_every_type(draw, scale, center, dtype, bits):
    weight = torch.from_numpy(draw("gaussian", 50_000)).to(dtype)
    result = balanced_fake_quantize(weight, bits, center=center, scale=scale)
    assert result.unique().numel() == 2**bits


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_every_level_is_as_far_from_the_next(draw, quantizer, bits):
    values = quantizer(torch.from_numpy(draw("uniform", 20_000)), bits).unique().double()
    assert values.numel() == 2**bits
    largest = values.abs().max()
    # Each level is rounded to float32 once: 2**-24 of the largest.
    assert_close(values.diff() / largest, torch.full((2**bits - 1,), 2.0 / (2**bits - 1)).double(), rtol=0, atol=2**-23)
    assert_close(values, -values.flip(0), rtol=0, atol=0)


# --- Gradient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_straight_through_returns_second_and_differentiates_first_exactly(dtype):
    value = torch.tensor([0.3, -7e4, 1e-5, 0.0]).to(dtype).clamp(-6e4, 6e4).requires_grad_()
    quantized = torch.tensor([1.0, -0.1, 1e4, -0.0]).requires_grad_()
    result = straight_through(value, quantized)
    assert_close(result.detach(), quantized.detach().to(dtype), rtol=0, atol=0)
    upstream = torch.tensor([2.0, -1.0, 0.5, 3.0]).to(dtype)
    result.backward(upstream)
    assert_close(value.grad, upstream, rtol=0, atol=0)
    assert quantized.grad is None


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradient_is_the_upstream_gradient_exactly(draw, name, scale, granularity, dtype, bits):
    weight = torch.from_numpy(draw("student_t3", (6, 20))).to(dtype).requires_grad_()
    upstream = torch.from_numpy(draw("gaussian", (6, 20), seed=1)).to(dtype)
    QUANTIZERS[name](weight, bits, scale=scale, granularity=granularity).backward(upstream)
    assert_close(weight.grad, upstream, rtol=0, atol=0)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("scale", SCALES)
def test_second_derivative_is_that_of_the_function_of_the_levels(draw, scale, name):
    weight = torch.from_numpy(draw("gaussian", 20)).requires_grad_()
    quantized = QUANTIZERS[name](weight, 2, scale=scale)
    (gradient,) = torch.autograd.grad((quantized**3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    # The factors 3 and 2 round in float32.
    assert_close(gradient, 3 * quantized**2, rtol=1e-6, atol=0)
    assert_close(second, 6 * quantized.detach(), rtol=1e-6, atol=0)


# --- Memory layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((6, 4, 3, 3), torch.channels_last), ((6, 4, 3, 3, 2), torch.channels_last_3d)],
    ids=["channels_last", "channels_last_3d"],
)
def test_memory_format_is_kept_and_changes_no_value(draw, quantizer, shape, memory_format):
    weight = torch.from_numpy(draw("gaussian", shape))
    result = quantizer(weight.to(memory_format=memory_format), 2)
    assert result.is_contiguous(memory_format=memory_format)
    assert not result.is_contiguous()
    assert_close(result, quantizer(weight, 2), rtol=0, atol=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_memory_format_changes_no_value_per_granularity(draw, name, granularity):
    weight = torch.from_numpy(draw("gaussian", (6, 4, 3, 3)))
    result = QUANTIZERS[name](weight.to(memory_format=torch.channels_last), 2, granularity=granularity)
    assert_close(result, QUANTIZERS[name](weight, 2, granularity=granularity), rtol=0, atol=0)


def test_strides_change_no_value(draw, quantizer):
    weight = torch.from_numpy(draw("gaussian", (12, 30)))
    for view in (weight.t(), weight[:, ::3], weight[1::2], weight[0].expand(3, -1)):
        assert_close(
            quantizer(view, 3), quantizer(view.clone(memory_format=torch.contiguous_format), 3), rtol=0, atol=0
        )


def test_float64_weight_gives_float32_levels_in_float64(draw, quantizer):
    weight = torch.from_numpy(draw("gaussian", (4, 30))).double()
    result = quantizer(weight, 3)
    assert result.dtype == torch.float64
    assert_close(result.to(torch.float32), quantizer(weight.to(torch.float32), 3), rtol=0, atol=0)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
def test_default_type_changes_no_value_and_no_type(draw, quantizer):
    weight = torch.from_numpy(draw("gaussian", (4, 30)))
    result = quantizer(weight, 3)
    torch.set_default_dtype(torch.float32)
    assert_close(result, quantizer(weight, 3), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_equal_values_stay_equal_and_finite(quantizer, value, bits):
    result = quantizer(torch.full((3, 4), value), bits)
    assert result.isfinite().all()
    assert result.unique().numel() == 1
    if value == 0 and quantizer is not dorefa_fake_quantize:
        assert (result == 0).all()  # a scale of 0, whatever the code


@pytest.mark.parametrize("grad", [True, False])
def test_straight_through_passes_tangents_of_forward_mode(grad):
    value, tangent, quantized = torch.tensor([0.3, -0.8]), torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
    with torch.set_grad_enabled(grad), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(value.requires_grad_(grad), tangent)
        result = torch.autograd.forward_ad.unpack_dual(straight_through(dual, quantized))
        torch.testing.assert_close(result.primal, quantized, rtol=0, atol=0)
        torch.testing.assert_close(result.tangent, tangent, rtol=0, atol=0)


def test_straight_through_passes_transforms_of_functions():
    values, quantized = torch.tensor([[0.3, -0.8], [0.1, 0.2]]), torch.tensor([1.0, -1.0])
    square = lambda value: (straight_through(value, quantized) ** 2).sum()  # noqa: E731  # a function to transform
    expected = (2 * quantized).expand(2, 2)
    torch.testing.assert_close(torch.vmap(torch.func.grad(square))(values), expected, rtol=0, atol=0)
    tangents = torch.func.jvp(square, (values[0],), (torch.ones(2),))[1]
    torch.testing.assert_close(tangents, torch.tensor(0.0), rtol=0, atol=0)


def test_connect_passes_the_gradient_of_the_value_and_gives_the_parameter_zeros():
    value, parameter, upstream = randn(3, 2).requires_grad_(), randn(4, seed=1).requires_grad_(), randn(3, 2, seed=2)
    connected = connect(value, parameter)
    assert_equal(connected.detach(), value.detach())
    by_value, by_parameter = torch.autograd.grad((connected * upstream).sum(), [value, parameter])
    assert_equal(by_value, upstream)
    assert_equal(by_parameter, torch.zeros(4))


@pytest.mark.parametrize("strides", ["equal", "different"])
@pytest.mark.parametrize("learning", [True, False])
def test_straight_through_gives_the_quantized_values_no_gradient(learning, strides):
    value = (randn(3, 2) if strides == "equal" else randn(2, 3).t()).requires_grad_(learning)
    result = straight_through(value, randn(3, 2, seed=1).requires_grad_())
    assert result.requires_grad is learning
    assert_equal(result.detach(), randn(3, 2, seed=1))
