import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_balq import functional
from lightning_balq.functional.lsq import (
    lsq_activation_fake_quantize,
    lsq_activation_range,
    lsq_activation_scale,
    lsq_bounds,
    lsq_codes,
    lsq_fake_quantize,
    lsq_initial_scale,
    lsq_scale,
    scaled_fake_quantize,
)
from tests import reference
from tests.helpers import assert_equal, randn

TRUE, FALSE = torch.tensor(True), torch.tensor(False)
# Quotients and products in float32 here, in float64 there; sums of some thousand values.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def with_gradients(function, *arguments, upstream):
    """Result, and gradients by the arguments that ask for one."""
    given = [value.clone().requires_grad_() for value in arguments]
    result = function(*given)
    (result * upstream).sum().backward()
    return result.detach(), [value.grad for value in given]


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_and_gradients_are_those_of_the_paper(bits):
    weight, scale, upstream = randn(40, 30), torch.tensor([2.5 / 2**bits]), randn(40, 30, seed=1)
    levels, (by_weight, by_scale) = with_gradients(
        lambda w, s: lsq_fake_quantize(w, s, bits), weight, scale, upstream=upstream
    )
    Qn, Qp = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    v, s, g = weight.double().numpy(), float(scale), upstream.double().numpy()
    assert_close(levels.double(), torch.from_numpy(reference.lsq(v, s, Qn, Qp)[1]), **CLOSE)
    assert_close(by_weight.double(), torch.from_numpy(reference.lsq_data_gradient(v, s, Qn, Qp) * g), **CLOSE)
    expected = (reference.lsq_scale_gradient(v, s, Qn, Qp) * g).sum() * reference.lsq_factor(v.size, Qp)
    assert by_scale.item() == pytest.approx(expected, rel=1e-4)
    assert 0.02 < (by_weight == 0).float().mean() < 0.9


@pytest.mark.parametrize("bits", range(1, 9))
def test_symmetric_grid_is_that_of_uniform_quantization(bits):
    weight, scale = randn(500), torch.tensor([1.7 / 2**bits])
    upstream = randn(500, seed=1)
    levels, (by_weight, by_scale) = with_gradients(
        lambda w, s: lsq_fake_quantize(w, s, bits, grid="symmetric"), weight, scale, upstream=upstream
    )
    codes = functional.uniform_codes(weight, scale / 2, bits)
    assert_equal(lsq_codes(weight, scale, bits, grid="symmetric"), codes)
    assert_close(levels, functional.dequantize(codes, scale / 2, bits), rtol=1e-6, atol=0)  # one rounding more there
    bound = (2**bits - 1) / 2
    ratio = (weight / scale).double()
    inside = ratio.abs() < bound
    assert_close(
        by_weight, torch.where(inside, upstream, 0.0), rtol=1e-6, atol=0
    )  # divided by the scale, and multiplied
    multiples = (levels / scale).double()
    slope = torch.where(inside, multiples - ratio, multiples)
    assert by_scale.item() == pytest.approx(float((slope * upstream).sum()) / np.sqrt(500 * bound), rel=1e-4)


@pytest.mark.parametrize("grid", ["integer", "symmetric"])
def test_each_channel_has_the_levels_and_gradients_it_has_alone(grid):
    weight, upstream = randn(3, 4, 5), randn(3, 4, 5, seed=1)
    scale = torch.tensor([0.1, 0.4, 1.0])
    function = lambda w, s: lsq_fake_quantize(w, s, 3, grid=grid)  # noqa: E731  # used twice
    levels, (by_weight, by_scale) = with_gradients(function, weight, scale, upstream=upstream)
    for row in range(3):
        alone, (w, s) = with_gradients(function, weight[row], scale[row : row + 1], upstream=upstream[row])
        assert_equal(levels[row], alone)
        assert_equal(by_weight[row], w)
        assert_close(by_scale[row : row + 1], s)


def test_levels_are_exactly_multiples_of_the_scale():
    levels = lsq_fake_quantize(randn(1000), torch.tensor([0.3]), 4)
    assert levels.unique().numel() == 16
    assert_equal(levels, (levels / 0.3).round() * torch.tensor(0.3))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_empty_weight_has_empty_levels(shape):
    weight = torch.zeros(shape, requires_grad=True)
    scale = torch.ones(shape[0], requires_grad=True)
    assert lsq_fake_quantize(weight, scale, 2).shape == shape
    assert scaled_fake_quantize(weight, torch.zeros(shape), scale, 2).shape == shape


def test_codes_and_levels_go_together():
    weight, scale = randn(200), torch.tensor([0.37])
    for bits, grid in ((2, "integer"), (3, "symmetric")):
        lowest, _ = lsq_bounds(bits, grid)
        codes = lsq_codes(weight, scale, bits, grid=grid)
        assert_equal(lsq_fake_quantize(weight, scale, bits, grid=grid), (codes + lowest) * scale)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_initial_scale(granularity):
    weight = randn(4, 50)
    rows = weight.numpy().reshape(1 if granularity == "per_tensor" else 4, -1)
    expected = 2 * np.abs(rows.astype(np.float64)).mean(1) / np.sqrt(2**2 - 1)
    assert_close(lsq_initial_scale(weight, 3, granularity=granularity), torch.from_numpy(expected).float())


def test_negative_scale_acts_as_its_magnitude_and_learns_the_other_way():
    weight, upstream = randn(50), randn(50, seed=1)
    function = lambda w, s: lsq_fake_quantize(w, s, 2)  # noqa: E731  # used twice
    levels, (_, by_scale) = with_gradients(function, weight, torch.tensor([0.5]), upstream=upstream)
    mirrored, (_, by_mirrored) = with_gradients(function, weight, torch.tensor([-0.5]), upstream=upstream)
    assert_equal(mirrored, levels)
    assert_equal(by_mirrored, -by_scale)


def test_scale_of_zero_is_harmless():
    levels, (by_weight, by_scale) = with_gradients(
        lambda w, s: lsq_fake_quantize(w, s, 2), randn(50), torch.zeros(1), upstream=torch.ones(50)
    )
    assert all(value.isfinite().all() for value in (levels, by_weight, by_scale))


def test_integer_grid_needs_two_bits():
    with pytest.raises(ValueError, match="no level above zero at 1 bit: use 2 bits or more"):
        lsq_fake_quantize(randn(4), torch.ones(1), 1)


# ---- the logarithm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 0.03, 5.0])
def test_a_step_of_sgd_moves_the_scale_as_if_it_were_the_parameter(scale):
    target, rate = 1.3 * scale, 1e-3  # a step of 0.06 % of the scale, so that its square is below the tolerance
    log_scale = torch.tensor([math.log(scale)], requires_grad=True)
    optimizer = torch.optim.SGD([log_scale], lr=rate)
    (lsq_scale(log_scale) - target).square().sum().backward()
    optimizer.step()
    by_hand = scale - rate * 2 * (scale - target)
    assert (lsq_scale(log_scale).item() - scale) == pytest.approx(by_hand - scale, rel=2e-2)


def test_a_step_of_adam_moves_the_scale_in_proportion_to_itself():
    log_scale = torch.tensor([1e-4, 0.03, 5.0]).log().requires_grad_()
    before = lsq_scale(log_scale).detach()
    optimizer = torch.optim.Adam([log_scale], lr=0.01)
    lsq_scale(log_scale).sum().backward()
    optimizer.step()
    assert_close(lsq_scale(log_scale).detach() / before, torch.full((3,), math.exp(-0.01)))


def test_a_scale_is_positive_and_finite_whatever_its_logarithm():
    scale = lsq_scale(torch.tensor([-1e4, -200.0, 200.0, 1e4]))
    assert bool((scale > 0).all()) and bool(scale.isfinite().all())


def test_gradient_of_the_smallest_scale_is_finite():
    log_scale = torch.tensor([-1e4], requires_grad=True)
    (1e6 * lsq_scale(log_scale)).sum().backward()
    assert 0 < log_scale.grad.item() < math.inf


# ---- fixed codes at a learned scale ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4])
def test_fixed_codes_get_the_scale_and_its_gradient(rows, dtype):
    bits, weight = 3, randn(4, 50).to(dtype)
    codes = functional.balanced_codes(weight, bits)
    odd = (2.0 * codes - 7).to(dtype)
    scale, upstream = torch.linspace(0.5, 1, rows), randn(4, 50, seed=1).to(dtype)
    levels, (by_weight, by_scale) = with_gradients(
        lambda w, s: scaled_fake_quantize(w, odd, s, bits), weight, scale, upstream=upstream
    )
    assert levels.dtype == by_weight.dtype == dtype and by_scale.dtype == torch.float32
    assert_equal(levels, (odd.float() * (scale / 2).reshape(-1, 1)).to(dtype))
    assert_equal(by_weight, upstream)
    products = (upstream * odd / 2).double().reshape(rows, -1).sum(1)
    expected = (products / np.sqrt(200 // rows * 3.5)).float()
    tolerance = 1e-5 if dtype != torch.bfloat16 else 1e-2  # products are rounded to 8 bits
    assert_close(by_scale, expected, rtol=tolerance, atol=tolerance)


def test_unit_levels_of_balanced_quantization_are_odd_codes():
    weight = randn(300)
    odd = functional.balanced_fake_quantize(weight, 3, scale="unit")
    assert_equal(odd, 2.0 * functional.balanced_codes(weight, 3) - 7)


# ---- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_unsigned_activations_are_those_of_the_paper(bits):
    x, scale, upstream = randn(8, 60) + 0.5, torch.tensor([2.0 / 2**bits]), randn(8, 60, seed=1)
    levels, (by_x, by_scale) = with_gradients(
        lambda x, s: lsq_activation_fake_quantize(x, s, bits, signed=FALSE), x, scale, upstream=upstream
    )
    v, s, g, Qp = x.double().numpy(), float(scale), upstream.double().numpy(), 2**bits - 1
    assert_close(levels.double(), torch.from_numpy(reference.lsq(v, s, 0, Qp)[1]), **CLOSE)
    assert_close(by_x.double(), torch.from_numpy(reference.lsq_data_gradient(v, s, 0, Qp) * g), **CLOSE)
    expected = (reference.lsq_scale_gradient(v, s, 0, Qp) * g).sum() * reference.lsq_factor(60, Qp)
    assert by_scale.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_signed_activations_have_the_gradients_of_their_grid(bits):
    x, scale, upstream = randn(8, 60), torch.tensor([2.0 / 2**bits]), randn(8, 60, seed=1)
    x[0, :5] = 0
    levels, (by_x, by_scale) = with_gradients(
        lambda x, s: lsq_activation_fake_quantize(x, s, bits, signed=TRUE), x, scale, upstream=upstream
    )
    n = 2**bits - 1
    _, expected = reference.activation(x.numpy(), bits, float(scale) * n / 2, signed=True)
    assert_close(levels, torch.from_numpy(expected), **CLOSE)
    assert_equal(levels[0, :5], torch.zeros(5))
    ratio, multiples = (x / scale).double(), (levels / scale).double()
    inside = ratio.abs() <= n / 2
    assert_equal(by_x, torch.where(inside, upstream, 0.0))
    slope = torch.where(inside, multiples - ratio, multiples)
    assert by_scale.item() == pytest.approx(float((slope * upstream).sum()) / np.sqrt(60 * n / 2), rel=1e-3)


@pytest.mark.parametrize("signed", [TRUE, FALSE])
def test_range_and_scale_of_activations_are_inverse(signed):
    range_ = torch.tensor(1.3)
    scale = lsq_activation_scale(range_, 3, signed=signed)
    assert_close(lsq_activation_range(scale, 3, signed=signed), range_)


def test_second_derivative_by_upstream_and_input_is_defined():
    x, scale = randn(4, 5).requires_grad_(), torch.tensor([0.5], requires_grad=True)
    levels = lsq_activation_fake_quantize(x, scale, 2, signed=FALSE)
    (by_x,) = torch.autograd.grad((levels**2).sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(by_x.sum(), scale)
    assert again.isfinite().all() and again != 0


def test_range_is_not_rounded_to_the_type_of_the_activation():
    x = torch.tensor([[0.5]], dtype=torch.bfloat16, requires_grad=True)
    lsq_activation_fake_quantize(x, torch.tensor([0.4995]), 1, signed=FALSE).sum().backward()  # 0.5 in bfloat16
    assert x.grad.tolist() == [[0]]


def test_gradient_of_the_scale_is_summed_in_its_type():
    x, scale = torch.full((301, 1), 2.0, dtype=torch.bfloat16), torch.tensor([1.0], requires_grad=True)
    lsq_activation_fake_quantize(x, scale, 1, signed=FALSE).sum().backward()
    assert scale.grad.tolist() == [301]  # bfloat16 has 300 and 302


def test_a_scalar_activation_stays_a_scalar_and_has_a_gradient():
    x, scale = torch.tensor(0.6, requires_grad=True), torch.tensor([0.5], requires_grad=True)
    levels = lsq_activation_fake_quantize(x, scale, 2, signed=FALSE)
    levels.backward()
    assert (levels.item(), x.grad.item()) == (0.5, 1)
    assert scale.grad.item() == pytest.approx((1 - 1.2) / math.sqrt(3), rel=1e-6)


def test_no_activations_have_a_gradient_of_zero():
    scale = torch.tensor([0.5], requires_grad=True)
    lsq_activation_fake_quantize(torch.ones(0, 3), scale, 2, signed=FALSE).sum().backward()
    assert scale.grad.tolist() == [0]


@pytest.mark.parametrize(("signed", "ends"), [(FALSE, [0.0, 1.5]), (TRUE, [-0.75, 0.75])], ids=["unsigned", "signed"])
def test_the_ends_of_the_range_lie_inside(signed, ends):
    x, scale = torch.tensor([ends], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    lsq_activation_fake_quantize(x, scale, 2, signed=signed).sum().backward()
    assert (x.grad.tolist(), scale.grad.tolist()) == ([[1, 1]], [0])


def test_a_batch_of_one_sample_has_the_values_of_that_sample():
    scale = torch.tensor([1.0], requires_grad=True)
    lsq_activation_fake_quantize(torch.full((1, 4), 2.0), scale, 1, signed=FALSE).sum().backward()
    assert scale.grad.tolist() == [4 / math.sqrt(4)]


def test_a_weight_of_one_value_shares_its_scale_with_none():
    scale = torch.tensor([1.0], requires_grad=True)
    lsq_fake_quantize(torch.tensor([0.25]), scale, 2).backward()
    assert scale.grad.tolist() == [-0.25]


def test_scale_of_zero_in_half_precision_is_harmless():
    weight = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float16)
    assert lsq_codes(weight, torch.zeros(1, dtype=torch.float16), 2).tolist() == [2, 3, 0]


def test_codes_are_those_of_the_float32_values():
    weight = torch.tensor([0.5 + 1e-12], dtype=torch.float64)
    assert_equal(lsq_codes(weight, torch.ones(1), 2), lsq_codes(weight.float(), torch.ones(1), 2))


def test_scale_of_a_logarithm_in_low_precision_is_computed_in_float32():
    assert_equal(lsq_scale(torch.ones(1, dtype=torch.bfloat16)).detach(), torch.ones(1).exp())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_levels_have_the_type_of_the_weight(dtype):
    assert lsq_fake_quantize(randn(3, 4).to(dtype), torch.ones(1), 2).dtype == dtype
