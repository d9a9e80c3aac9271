import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_balq.functional import least_squares_scale, max_scale, mean_scale
from tests import reference

ALL_BITS = range(1, 9)
KINDS = ["gaussian", "laplace", "student_t3", "positive", "ties"]


def random_codes(shape, bits):
    return torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def sorted_codes(weight, bits):
    """Codes that grow with the weight, as those of a quantizer do: equal shares in ascending order."""
    rank = weight.reshape(-1).argsort().argsort().reshape(weight.shape)
    return (rank * 2**bits // weight.numel()).to(torch.uint8)


SCALES = {
    "max": max_scale,
    "mean": mean_scale,
    "least_squares": lambda weight, bits, **options: least_squares_scale(
        weight, random_codes(weight.shape, bits), bits, **options
    ),
}


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_max_scale_is_largest_magnitude_divided_by_largest_code_exactly(draw, kind, bits):
    weight = draw(kind, (6, 7))
    expected = torch.tensor([reference.max_scale(weight, bits)], dtype=torch.float32)
    assert_close(max_scale(torch.from_numpy(weight), bits), expected, rtol=0, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_mean_scale_is_5_quarters_of_mean_magnitude_divided_by_largest_code(draw, kind, bits):
    weight = draw(kind, (6, 7))
    expected = torch.tensor([reference.mean_scale(weight, bits)], dtype=torch.float32)
    # The reference rounds to float32 once, the package at the mean, the product and the quotient: 2**-24 each.
    assert_close(mean_scale(torch.from_numpy(weight), bits), expected, rtol=2**-22, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_scale_equals_lstsq(draw, kind, bits):
    weight = draw(kind, (30, 7)) - draw(kind, (30, 7)).mean()
    codes = sorted_codes(torch.from_numpy(weight), bits)
    expected = torch.tensor([reference.least_squares_scale(weight, codes.numpy(), bits)], dtype=torch.float32)
    # Four float32 roundings of 2**-24 each: quotient, product, scale, and the unit put back.
    result = least_squares_scale(torch.from_numpy(weight), codes, bits)
    assert_close(result, expected, rtol=2**-21, atol=0)


def test_least_squares_scale_has_the_least_error_of_all_scales(draw):
    weight = torch.from_numpy(draw("gaussian", 1000)).double()
    codes = sorted_codes(weight, 3)
    best = least_squares_scale(weight, codes, 3).double()
    factors = torch.linspace(0.5, 1.5, 101).double()  # the 51st is 1
    z = 2 * codes.double() - 7
    errors = (weight - (factors * best)[:, None] * z).square().sum(dim=1)
    assert errors.argmin() == 50


def test_least_squares_scale_is_0_where_the_solution_is_negative():
    weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    codes = torch.tensor([[0, 1], [0, 1]])
    assert reference.least_squares_scale(weight[0].numpy(), codes[0].numpy(), 1) == pytest.approx(-1)
    result = least_squares_scale(weight, codes, 1, granularity="per_channel")
    assert result.tolist() == [0.0, 1.0]
    assert not result.signbit().any()


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_per_channel_scale_is_the_scale_of_every_channel_exactly(draw, bits, name):
    weight = torch.from_numpy(draw("laplace", (5, 4, 3, 3)))
    if name == "least_squares":
        codes = random_codes(weight.shape, bits)
        whole = least_squares_scale(weight, codes, bits, granularity="per_channel")
        each = [least_squares_scale(w, c, bits) for w, c in zip(weight, codes, strict=True)]
    else:
        whole = SCALES[name](weight, bits, granularity="per_channel")
        each = [SCALES[name](w, bits) for w in weight]
    assert whole.shape == (5,)
    assert_close(whole, torch.cat(each), rtol=0, atol=0)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_scale_is_that_of_the_float32_values(draw, dtype, name):
    weight = (torch.from_numpy(draw("gaussian", (4, 300))).double() / 3).to(dtype)
    result = SCALES[name](weight, 4)
    assert result.dtype == torch.float32
    assert_close(result, SCALES[name](weight.to(torch.float32), 4), rtol=0, atol=0)


@pytest.mark.parametrize("name", SCALES)
def test_scale_carries_no_gradient(draw, name):
    assert not SCALES[name](torch.from_numpy(draw("gaussian", (4, 3))).requires_grad_(), 2).requires_grad


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (4, 2)], ids=str)
def test_scale_of_no_weights_and_of_zeros_is_0(shape, granularity, name):
    result = SCALES[name](torch.zeros(shape), 2, granularity=granularity)
    expected = torch.zeros(shape[0] if granularity == "per_channel" else 1)
    assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_scale_of_a_scalar_weight_has_one_element(bits, name):
    assert SCALES[name](torch.tensor(-2.0), bits).shape == (1,)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_least_squares_scale_of_huge_weights_does_not_overflow(bits):
    weight = torch.tensor([3e38, -3e38, 2e38, -2e38])
    codes = torch.tensor([2**bits - 1, 0, 2**bits - 1, 0])
    expected = torch.tensor([2.5e38 / (2**bits - 1)])
    # Four float32 roundings of 2**-24 each: quotient, product, scale, and the unit put back.
    assert_close(least_squares_scale(weight, codes, bits), expected, rtol=2**-21, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_mean_scale_of_huge_weights_does_not_overflow(bits):
    expected = torch.tensor([1.25 * 2.5e38 / (2**bits - 1)])
    # Float32 roundings of mean, product and quotient: 2**-24 each.
    assert_close(mean_scale(torch.tensor([3e38, -2e38]), bits), expected, rtol=2**-22, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_scale_of_subnormal_weights_is_the_nearest_float32(bits):
    weight = torch.tensor([-3e-40, 1e-40])
    # One subnormal step, 2**-149, for each rounding.
    expected = reference.max_scale(weight.numpy(), bits)
    np.testing.assert_allclose(max_scale(weight, bits).item(), expected, rtol=0, atol=2.0**-149)
    expected = reference.least_squares_scale(weight.numpy(), np.array([0, 2**bits - 1]), bits)
    result = least_squares_scale(weight, torch.tensor([0, 2**bits - 1]), bits)
    np.testing.assert_allclose(result.item(), expected, rtol=2**-21, atol=2.0**-149)


@pytest.mark.parametrize("bits", range(1, 9))
def test_outermost_level_of_the_largest_float32_is_finite_and_next_to_it(bits):
    largest = torch.finfo(torch.float32).max
    level = max_scale(torch.tensor([largest]), bits) * (2**bits - 1)
    assert level.isfinite().all()
    assert level.item() / largest > 1 - 2.0**-19.5
