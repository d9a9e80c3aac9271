import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from lightning_balq.functional import (
    activation_codes,
    activation_fake_quantize,
    activation_observation,
    activation_scale,
)
from tests import reference

ALL_BITS = range(1, 9)
SIGNED = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])


def interval(r, signed):
    return {"range": torch.tensor(r), "signed": torch.tensor(signed)}


def assert_equals_reference(x, bits, r, signed):
    codes, levels = reference.activation(x, bits, r, signed)
    options = interval(r, signed)
    assert_close(activation_codes(torch.from_numpy(x), bits, **options), torch.from_numpy(codes), rtol=0, atol=0)
    result = activation_fake_quantize(torch.from_numpy(x), bits, **options)
    assert_close(result, torch.from_numpy(levels), rtol=0, atol=0)


# --- The definition --------------------------------------------------------------------------------------------------


@SIGNED
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("r", [0.0, 1e-45, 1e-30, 0.1, 1.0, 6.0, 1e5, 1.5e38])
def test_codes_and_levels_equal_float32_numpy_exactly(draw, r, bits, signed):
    x = np.concatenate([draw("uniform", 2000) * np.float32(1.1 * r), draw("gaussian", 2000)])
    assert_equals_reference(x, bits, r, signed)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_codes_and_levels_equal_float32_numpy_exactly_at_a_huge_range(draw, bits):
    assert_equals_reference(draw("uniform", 2000) * np.float32(3e38), bits, 3e38, signed=False)


@SIGNED
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_codes_and_levels_of_a_million_values_equal_float32_numpy_exactly(draw, bits, signed):
    assert_equals_reference(draw("gaussian", 1_000_000), bits, 1.7, signed)


@SIGNED
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("r", [0.3, 1.0, 5.0])
def test_codes_at_ties_and_beside_them_equal_float32_numpy_exactly(r, bits, signed):
    lower, n = (-r if signed else 0.0), 2**bits - 1
    ties = np.float32(lower + (np.arange(-2, n + 3) + 0.5) * (r - lower) / n)
    beside = [np.nextafter(ties, np.float32(sign * np.inf)) for sign in (-1, 1)]
    assert_equals_reference(np.concatenate([ties, *beside]), bits, r, signed)


@SIGNED
@pytest.mark.parametrize("bits", ALL_BITS)
def test_exact_ties_round_to_the_even_code(bits, signed):
    n = 2**bits - 1
    r = n / 2 if signed else float(n)  # a step of exactly 1
    ties = torch.arange(n) + 0.5 - (r if signed else 0)
    expected = torch.arange(n) + torch.arange(n) % 2
    assert activation_codes(ties, bits, **interval(r, signed)).tolist() == expected.tolist()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_unsigned_range_1_is_the_quantizer_of_dorefa_off_the_ties(draw, bits):
    x = draw("uniform", 2000)
    position = (2**bits - 1) * np.clip(x.astype(np.float64), 0, 1)
    off_ties = np.abs(position - np.floor(position) - 0.5) > 2.0**-23 * 2**bits  # float32 rounding
    result = activation_fake_quantize(torch.from_numpy(x), bits, **interval(1.0, False)).numpy()
    # Scale and level are rounded to float32 once each: 2**-24.
    expected = reference.Q(np.clip(x.astype(np.float64), 0, 1), bits)
    np.testing.assert_allclose(result[off_ties], expected[off_ties], rtol=2**-23, atol=0)


@SIGNED
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("r", [0.1, 1.0, 1e30])
def test_scale_is_width_divided_by_largest_code_exactly(r, bits, signed):
    expected = np.float32(2 if signed else 1) * np.float32(r) / np.float32(2**bits - 1)
    result = activation_scale(bits, **interval(r, signed))
    assert (result.dtype, result.shape) == (torch.float32, ())
    assert result.item() == expected


@SIGNED
@pytest.mark.parametrize("r", [0.0, 1e-45])
def test_scale_of_range_0_is_the_smallest_normal_number(r, signed):
    assert activation_scale(8, **interval(r, signed)).item() == torch.finfo(torch.float32).tiny


@SIGNED
@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("r", [0.0, 1e-30, 0.1, 1.0, 7.0, 1.5e38])
def test_levels_lie_in_the_interval_and_reach_its_ends(r, bits, signed):
    x = torch.tensor([-torch.inf, -3e38, -1.0, 0.0, 0.3, 1.0, 3e38, torch.inf])
    result = activation_fake_quantize(x, bits, **interval(r, signed)).double()
    lower = -r if signed else 0.0
    # The upper end is three float32 roundings; at range 0 the scale is the smallest normal number instead of 0.
    tolerance = max(2**-22 * r, 256 * torch.finfo(torch.float32).tiny)
    assert_close(result[:2], torch.tensor([lower, lower]).double(), rtol=0, atol=tolerance)
    assert_close(result[-2:], torch.tensor([r, r]).double(), rtol=0, atol=tolerance)
    assert (result >= lower - tolerance).all()
    assert (result <= r + tolerance).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_signed_zero_goes_to_the_even_one_of_the_two_inner_levels(bits):
    # A state of 0 lies half-way between two levels; with a range of n the step is exactly 2.
    n = 2**bits - 1
    codes = activation_codes(torch.tensor([0.0, -0.0]), bits, **interval(float(n), True))
    even = 2 * round(n / 4)
    assert abs(even - n / 2) == 0.5
    assert codes.tolist() == [even, even]


@SIGNED
def test_negative_zero_equals_zero(signed):
    x = torch.tensor([0.0, -0.0])
    for bits in ALL_BITS:
        result = activation_fake_quantize(x, bits, **interval(1.0, signed))
        assert result[0] == result[1]
        codes = activation_codes(x, bits, **interval(1.0, signed))
        assert codes[0] == codes[1]


def test_results_have_no_negative_zero():
    x = torch.tensor([-1.0, -0.1, -0.0])
    assert not activation_fake_quantize(x, 2, **interval(1.0, False)).signbit().any()


# --- Types and layout ------------------------------------------------------------------------------------------------


@SIGNED
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("r", [0.1, 1.0, 100.0])
def test_low_precision_result_is_float32_result_rounded(draw, r, dtype, bits, signed):
    x = (torch.from_numpy(draw("gaussian", 5000)) * r).to(dtype)
    codes, levels = reference.activation(x.float().numpy(), bits, r, signed)
    options = interval(r, signed)
    assert_close(activation_codes(x, bits, **options), torch.from_numpy(codes), rtol=0, atol=0)
    result = activation_fake_quantize(x, bits, **options)
    assert_close(result, torch.from_numpy(levels).to(dtype), rtol=0, atol=0)
    assert result.unique().numel() <= 2**bits


def test_float64_input_is_quantized_as_float32(draw):
    x = torch.from_numpy(draw("gaussian", 5000)).double() / 3
    options = interval(1.0, True)
    result = activation_fake_quantize(x, 4, **options)
    assert result.dtype == torch.float64
    expected = activation_fake_quantize(x.to(torch.float32), 4, **options).double()
    assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_range_may_have_another_type_than_the_input(dtype):
    x = torch.tensor([-1.0, 0.3, 0.6, 9.0])
    options = {"range": torch.tensor(1.5, dtype=dtype), "signed": torch.tensor(True)}
    expected = activation_fake_quantize(x, 2, **interval(1.5, True))
    assert_close(activation_fake_quantize(x, 2, **options), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3, 4, 5, 6)], ids=str)
def test_shape_is_kept(shape):
    x = torch.ones(shape)
    assert activation_fake_quantize(x, 2, **interval(1.0, False)).shape == shape
    assert activation_codes(x, 2, **interval(1.0, False)).shape == shape


@SIGNED
def test_memory_format_is_kept_and_changes_no_value(draw, signed):
    x = torch.from_numpy(draw("gaussian", (2, 3, 4, 5)))
    options = interval(1.0, signed)
    result = activation_fake_quantize(x.to(memory_format=torch.channels_last), 2, **options)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert_close(result, activation_fake_quantize(x, 2, **options), rtol=0, atol=0)


def test_arguments_are_not_changed(draw):
    x, options = torch.from_numpy(draw("gaussian", 50)), interval(1.0, True)
    before = x.clone()
    activation_fake_quantize(x, 2, **options)
    assert torch.equal(x, before)
    assert (options["range"].item(), options["signed"].item()) == (1.0, True)


# --- Gradient --------------------------------------------------------------------------------------------------------


@SIGNED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_is_identity_in_the_closed_interval_and_zero_outside(dtype, signed):
    lower = -2.0 if signed else 0.0
    x = torch.tensor([-3.0, -2.0, -1.0, 0.0, 0.7, 2.0, 2.25, 9.0], dtype=dtype, requires_grad=True)
    upstream = torch.arange(1.0, 9.0, dtype=dtype)
    activation_fake_quantize(x, 2, **interval(2.0, signed)).backward(upstream)
    inside = (x >= lower) & (x <= 2.0)
    assert_close(x.grad, upstream * inside, rtol=0, atol=0)


@SIGNED
def test_gradient_just_outside_the_ends_is_zero(signed):
    lower = -1.0 if signed else 0.0
    ends = np.array([lower, 1.0], dtype=np.float32)
    x = torch.from_numpy(np.nextafter(ends, np.array([-9, 9], dtype=np.float32))).requires_grad_()
    activation_fake_quantize(x, 2, **interval(1.0, signed)).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]


@SIGNED
def test_range_gets_no_gradient(signed):
    r = torch.tensor(1.0, requires_grad=True)
    x = torch.tensor([-2.0, 0.3, 5.0], requires_grad=True)
    activation_fake_quantize(x, 2, range=r, signed=torch.tensor(signed)).sum().backward()
    assert r.grad is None
    assert not activation_scale(2, range=r, signed=torch.tensor(signed)).requires_grad
    assert not activation_codes(x, 2, range=r, signed=torch.tensor(signed)).requires_grad


def test_second_derivative_is_that_of_the_function_of_the_levels():
    x = torch.tensor([-0.5, 0.3, 0.6, 1.7], requires_grad=True)
    quantized = activation_fake_quantize(x, 2, **interval(1.0, False))
    (gradient,) = torch.autograd.grad((quantized**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0])
    # The factor 6 rounds in float32.
    assert_close(second, 6 * quantized.detach() * inside, rtol=1e-6, atol=0)


# --- CUDA and properties ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@SIGNED
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("r", [0.1, 1.0, 1.7, 6.0])
def test_codes_and_levels_on_cuda_equal_those_on_cpu(draw, r, bits, signed):
    x = torch.from_numpy(draw("gaussian", 100_000)) * r
    options = {name: value.cuda() for name, value in interval(r, signed).items()}
    codes, levels = reference.activation(x.numpy(), bits, r, signed)
    assert_close(activation_codes(x.cuda(), bits, **options).cpu(), torch.from_numpy(codes), rtol=0, atol=0)
    result = activation_fake_quantize(x.cuda(), bits, **options).cpu()
    assert_close(result, torch.from_numpy(levels), rtol=0, atol=0)


properties = settings(deadline=None, derandomize=True, max_examples=150)
any_x = arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
any_range = st.floats(0, 2.0**126, width=32)


@properties
@given(x=any_x, bits=st.integers(1, 8), r=any_range, signed=st.booleans())
def test_codes_and_levels_of_any_finite_input_equal_float32_numpy_exactly(x, bits, r, signed):
    with np.errstate(over="ignore"):  # a quotient beyond float32 is infinite, and then clipped
        assert_equals_reference(x, bits, r, signed)


@properties
@given(x=any_x, bits=st.integers(1, 8), r=any_range, signed=st.booleans())
def test_codes_of_any_finite_input_are_monotone_integers_within_range(x, bits, r, signed):
    codes = activation_codes(torch.from_numpy(np.sort(x)), bits, **interval(r, signed))
    assert (codes.diff() >= 0).all()
    assert set(codes.tolist()) <= set(range(2**bits))


@SIGNED
@pytest.mark.parametrize("bits", ALL_BITS)
def test_zero_stays_zero_so_that_dropping_and_quantizing_commute(draw, bits, signed):
    x = torch.from_numpy(draw("gaussian", 1000))
    kept = torch.from_numpy(draw("uniform", 1000) > 0)
    options = interval(1.5, signed)
    dropped_first = activation_fake_quantize(x * kept, bits, **options)
    assert_close(dropped_first, activation_fake_quantize(x, bits, **options) * kept, rtol=0, atol=0)
    assert int((dropped_first == 0).sum()) > 400


def test_gradient_reaches_a_value_that_is_zero():
    x = torch.tensor([0.0, -0.0, 0.4], requires_grad=True)
    activation_fake_quantize(x, 2, **interval(1.0, True)).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


# --- What a batch shows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [0.5, 2.0, np.inf])
@pytest.mark.parametrize("kind", ["gaussian", "positive"])
def test_observation_is_the_range_one_and_whether_a_value_is_negative(draw, kind, spread, dtype):
    x = torch.from_numpy(draw(kind, (40, 25))).to(dtype).requires_grad_()
    values = x.detach().double().numpy()
    largest, mean = np.abs(values).max(), np.abs(values).mean()
    expected = torch.tensor([largest if spread == np.inf else min(largest, spread * mean), 1, kind == "gaussian"])
    observation = activation_observation(x, spread)
    # The mean is rounded to float32 before it is multiplied.
    assert_close(observation, expected.float(), rtol=1e-6, atol=0)
    assert observation.dtype == torch.float32
    assert not observation.requires_grad


def test_range_observed_is_that_of_the_larger_side():
    assert activation_observation(torch.tensor([-3.0, 1.0])).tolist() == [3, 1, 1]
    assert activation_observation(torch.tensor([-1.0, 3.0])).tolist() == [3, 1, 1]
    assert activation_observation(torch.tensor([0.0, 0.5])).tolist() == [0.5, 1, 0]
    assert activation_observation(torch.tensor([-0.25, 0.5])).tolist() == [0.5, 1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spread", [2.0, np.inf])
def test_batch_with_a_value_that_is_not_finite_shows_nothing(value, spread):
    assert activation_observation(torch.tensor([1.0, value, -1.0]), spread).tolist() == [0, 0, 0]


@SIGNED
def test_range_is_not_rounded_to_the_type_of_the_activation(signed):
    x = torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)
    activation_fake_quantize(x, 2, **interval(0.4995, signed)).sum().backward()  # 0.5 in bfloat16
    assert x.grad.tolist() == [0]
