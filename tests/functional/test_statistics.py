import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.testing import assert_close

from lightning_balq.functional import (
    balanced_codes,
    bin_utilization,
    code_histogram,
    effective_bitwidth,
    imbalance,
    quantization_error,
    uniform_codes,
    uniform_scale,
)
from tests import reference

INTEGER_TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def histograms(*shape, empty_share=0.3):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(1, 1000, shape) * (rng.random(shape) > empty_share))


# --- Histogram -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1000,), (10, 100), (5, 4, 5, 10)], ids=str)
def test_histogram_equals_bincount_exactly(shape, bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, shape)
    expected = np.bincount(codes.reshape(-1), minlength=2**bits)
    result = code_histogram(torch.from_numpy(codes), bits)
    assert_close(result, torch.from_numpy(expected), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", INTEGER_TYPES, ids=str)
def test_histogram_takes_codes_of_any_integer_type(dtype):
    codes = torch.tensor([[3, 0], [3, 1]], dtype=dtype)
    assert code_histogram(codes, 2).tolist() == [1, 1, 0, 2]
    assert codes.tolist() == [[3, 0], [3, 1]]


@pytest.mark.parametrize("codes", [torch.zeros(0, dtype=torch.uint8), torch.zeros(3, 0, dtype=torch.int64)], ids=str)
def test_histogram_of_no_codes_is_zero(codes):
    assert code_histogram(codes, 2).tolist() == [0, 0, 0, 0]


def test_histogram_of_a_scalar_counts_it():
    assert code_histogram(torch.tensor(2), 2).tolist() == [0, 0, 1, 0]


def test_histogram_does_not_depend_on_strides():
    codes = torch.arange(256).reshape(16, 16)
    assert_close(code_histogram(codes.t()[::2], 8), code_histogram(codes.t()[::2].clone(), 8), rtol=0, atol=0)


def test_histograms_add_up_to_that_of_both_layers():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(8, (100,), generator=generator)
    second = torch.randint(4, (3, 50), generator=generator)
    both = torch.cat([first, second.reshape(-1)])
    total = code_histogram(first, 3) + code_histogram(second, 3)
    assert_close(total, code_histogram(both, 3), rtol=0, atol=0)


# --- Effective bitwidth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_effective_bitwidth_equals_scipy_and_the_reference(bits):
    histogram = histograms(2**bits, empty_share=0.3 if bits > 1 else 0)
    result = effective_bitwidth(histogram)
    assert result.dtype == torch.float64
    # Sums of up to 256 float64 terms in another order.
    assert result.item() == pytest.approx(entropy(histogram.numpy(), base=2), rel=1e-13)
    assert result.item() == pytest.approx(reference.effective_bitwidth(histogram.numpy()), rel=1e-13)


@pytest.mark.parametrize("bits", range(1, 9))
def test_effective_bitwidth_of_equal_counts_is_bits(bits):
    # 256 float64 terms, each rounded to 2**-53.
    assert effective_bitwidth(torch.full((2**bits,), 7)).item() == pytest.approx(bits, rel=1e-14)


def test_effective_bitwidth_of_one_code_is_0_and_of_two_is_1():
    assert effective_bitwidth(torch.tensor([0, 9, 0, 0])).item() == 0
    assert effective_bitwidth(torch.tensor([0, 9, 9, 0])).item() == pytest.approx(1, rel=1e-15)
    assert not effective_bitwidth(torch.tensor([0, 9])).signbit()


# Effective bitwidth at 2, 3, 4 and 8 bits of 1e6 draws of `numpy.random.default_rng(0)`, rounded to 0.01.
EXPECTED = {
    ("gaussian", "uniform_max"): [1.02, 1.71, 2.74, 6.80],
    ("gaussian", "uniform_mean"): [2.00, 2.92, 3.75, 6.64],
    ("gaussian", "balanced_mean"): [1.98, 2.97, 3.97, 7.96],
    ("gaussian", "balanced_median"): [2, 3, 4, 8],
    ("laplace", "uniform_max"): [1.00, 1.10, 1.64, 5.50],
    ("laplace", "uniform_mean"): [1.99, 2.93, 3.77, 6.78],
    ("laplace", "balanced_mean"): [1.95, 2.93, 3.92, 7.91],
    ("laplace", "balanced_median"): [2, 3, 4, 8],
    ("student_t3", "uniform_max"): [1.00, 1.00, 1.00, 2.29],
    ("student_t3", "uniform_mean"): [1.98, 2.96, 3.83, 6.94],
    ("student_t3", "balanced_mean"): [1.93, 2.90, 3.88, 7.88],
    ("student_t3", "balanced_median"): [2, 3, 4, 8],
}


@pytest.mark.parametrize(("kind", "method"), EXPECTED, ids=["-".join(case) for case in EXPECTED])
def test_effective_bitwidth_of_distributions_is_as_computed_independently(draw, kind, method):
    name, option = method.split("_")
    weight = torch.from_numpy(draw(kind, 1_000_000 if option == "max" else 200_000))
    result = []
    for bits in (2, 3, 4, 8):
        if name == "uniform":
            codes = uniform_codes(weight, uniform_scale(weight, bits, scale=option), bits)
        else:
            codes = balanced_codes(weight, bits, center=option)
        result.append(effective_bitwidth(code_histogram(codes, bits)).item())
    # Rounding of the table, 0.005, and sampling: entropies of 2e5 draws deviate by some 0.003. The extremal scale
    # follows the single largest draw, so that there only the draws of the table give its values: five other seeds
    # differ by up to 0.25 (Gaussian, Laplace) and 0.7 (t3).
    assert result == pytest.approx(EXPECTED[kind, method], rel=0, abs=0.015)


# --- Utilization and imbalance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_bin_utilization_is_the_share_of_codes_used(bits):
    histogram = histograms(2**bits)
    assert bin_utilization(histogram).item() == np.count_nonzero(histogram.numpy()) / 2**bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_imbalance_is_largest_count_divided_by_smallest(bits):
    histogram = histograms(2**bits, empty_share=0)
    expected = np.float32(histogram.numpy().max()) / np.float32(histogram.numpy().min())
    assert imbalance(histogram).item() == expected


def test_imbalance_of_equal_counts_is_1_and_with_an_unused_code_infinite():
    assert imbalance(torch.tensor([5, 5])).item() == 1
    assert imbalance(torch.tensor([5, 0])).item() == math.inf


def test_statistics_of_an_empty_histogram_are_as_documented():
    histogram = code_histogram(torch.zeros(0, dtype=torch.uint8), 2)
    assert effective_bitwidth(histogram).item() == 0
    assert bin_utilization(histogram).item() == 0
    assert math.isnan(imbalance(histogram).item())


@pytest.mark.parametrize("statistic", [effective_bitwidth, bin_utilization, imbalance])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
def test_leading_dimensions_are_independent_layers(batch, statistic):
    batched = histograms(*batch, 8)
    result = statistic(batched)
    assert result.shape == batch
    each = torch.stack([statistic(histogram) for histogram in batched.reshape(-1, 8)]).reshape(batch)
    # The order of float64 sums may differ between one row and many.
    assert_close(result, each, rtol=1e-14, atol=0)


# --- Quantization error ----------------------------------------------------------------------------------------------


def test_quantization_error_is_relative_squared_norm(draw):
    weight, quantized = draw("gaussian", (7, 9)), draw("gaussian", (7, 9), seed=1)
    expected = (
        np.linalg.norm(weight.astype(np.float64) - quantized) ** 2 / np.linalg.norm(weight.astype(np.float64)) ** 2
    )
    result = quantization_error(torch.from_numpy(weight), torch.from_numpy(quantized))
    assert (result.dtype, result.shape) == (torch.float32, ())
    # Rounded to float32 once.
    assert result.item() == pytest.approx(expected, rel=2**-23)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_quantization_error_does_not_depend_on_the_size_of_the_weight(draw, factor):
    weight, quantized = torch.from_numpy(draw("gaussian", 50)), torch.from_numpy(draw("gaussian", 50, seed=1))
    result = quantization_error(weight * factor, quantized * factor)
    # Each product is rounded to float32, 2**-24; their effect on the sums is no larger.
    assert_close(result, quantization_error(weight, quantized), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("weight", "quantized", "expected"),
    [([1.0, 2.0], [1.0, 2.0], 0.0), ([0.0, 0.0], [0.0, 0.0], 0.0), ([], [], 0.0), ([0.0], [1.0], math.inf)],
    ids=["equal", "zeros", "empty", "only_weight_zero"],
)
def test_quantization_error_of_edge_cases_is_as_documented(weight, quantized, expected):
    assert quantization_error(torch.tensor(weight), torch.tensor(quantized)).item() == expected


@pytest.mark.parametrize(("weight", "quantized"), [(math.nan, 1.0), (1.0, math.nan)], ids=["weight", "quantized"])
def test_quantization_error_of_nan_is_nan(weight, quantized):
    result = quantization_error(torch.tensor([weight, 1.0]), torch.tensor([quantized, 1.0]))
    assert math.isnan(result.item())


def test_quantization_error_carries_no_gradient():
    weight = torch.ones(2, requires_grad=True)
    assert not quantization_error(weight, 2 * weight).requires_grad


def test_a_single_code_has_no_entropy():
    assert effective_bitwidth(torch.tensor([0, 1, 0, 0])) == 0
