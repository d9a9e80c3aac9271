"""Integers and scales stand for the levels that the fake-quantized network computes with."""

import pytest
import torch

from lightning_balq import functional
from lightning_balq.export import QuantizedInput, QuantizedWeight
from lightning_balq.export.integers import integer_input, integer_weight, overflow, weight_peak
from tests.helpers import assert_equal, randn

ONE_ULP = 2**-23
SIGNED = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])


def weight_of(bits, grid, scale, **options):
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(len(scale), 1)
    return QuantizedWeight(codes, scale, bits, grid, torch.float32, "", **options)


@pytest.mark.parametrize("grid", ["odd", "half", "integer", "unit"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_times_the_scale_are_the_levels(bits, grid):
    weight = weight_of(bits, grid, torch.tensor([1.0]) if grid == "unit" else torch.tensor([0.37, 1.9e-3]))
    made = integer_weight(weight)
    torch.testing.assert_close((made.codes * made.scale[:, None]).float(), weight.levels(), rtol=ONE_ULP, atol=0)
    assert made.codes.dtype == torch.int16 and int(made.codes.abs().max()) == weight_peak(weight)


def test_pruned_weights_are_zero():
    weight = weight_of(2, "odd", torch.tensor([0.5]), kept=torch.tensor([[True, False, True, False]]))
    assert_equal(integer_weight(weight).codes, torch.tensor([[-3, 0, 1, 0]], dtype=torch.int16))


def test_scale_has_a_number_for_each_output_channel():
    one = integer_weight(weight_of(2, "half", torch.tensor([0.5])))
    assert_equal(one.scale, torch.full((len(one.codes),), 0.25, dtype=torch.float64))
    assert_equal(integer_weight(weight_of(2, "odd", torch.tensor([0.0, 0.5]))).scale, torch.tensor([0.0, 0.5]).double())


@SIGNED
@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_of_an_activation_are_its_level_at_ties_too(bits, signed):
    given = integer_input(QuantizedInput(bits, 1.7, signed, "observed", "auto"))
    grid = {"range": torch.tensor(1.7), "signed": torch.tensor(signed)}
    ties = (torch.arange(2**bits) + 0.5) * functional.activation_scale(bits, **grid) - 1.7 * signed
    x = torch.cat([3 * randn(4001), ties, ties.nextafter(ties + 1), ties.nextafter(ties - 1), torch.zeros(2)])
    if given.peak > 255:
        pytest.skip("signed 8-bit activations have no integers in uint8")
    expected = functional.activation_fake_quantize(x, bits, **grid)
    levels = (given.integers(x).float() - given.zero_point) * given.scale
    torch.testing.assert_close(levels, expected, rtol=0, atol=1.7 * ONE_ULP)  # a code more is at least 1.7 / 127
    assert_equal(levels[x == 0], torch.zeros(int((x == 0).sum())))


@SIGNED
def test_range_of_zero_has_finite_levels_of_nearly_zero(signed):
    given = integer_input(QuantizedInput(4, 0.0, signed, "observed", "auto"))
    levels = (given.integers(randn(50)).double() - given.zero_point) * given.scale
    assert float(levels.abs().max()) < 1e-36


def test_range_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="the range of the input must be known, got one that no training batch"):
        integer_input(QuantizedInput(4, None, None, "observed", "auto"))


@pytest.mark.parametrize(
    ("weight", "activation", "products", "reason"),
    [
        (63, 255, 1, ""),
        (127, 127, 1, ""),
        (127, 129, 1, ""),
        (127, 130, 1, r"two products reach 2 \* 130 \* 127 = 33020, more than 32767"),
        (128, 1, 1, ""),
        (129, 1, 1, "its weights are integers up to 129, more than int8 holds"),
        (1, 256, 1, "its signed activations are integers up to 256, more than uint8 holds"),
        (127, 129, 131_079, ""),
        (127, 129, 131_081, "a sum of 131081 products can exceed 32 bits"),
    ],
)
def test_overflow_is_told_on_either_side_of_each_bound(weight, activation, products, reason):
    import re

    assert re.match(reason or "$", overflow(weight, activation, products))
