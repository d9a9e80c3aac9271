"""Weight quantizers are the functions of :mod:`lightning_balq.functional` with their options bound."""

import dataclasses
import pickle

import pytest
import torch

from lightning_balq import functional
from lightning_balq.nn import BalancedQuantizer, DoReFaQuantizer, UniformQuantizer, WeightQuantizer
from tests.helpers import assert_equal, randn

BITS = [1, 2, 3, 8]
GRANULARITIES = ["per_tensor", "per_channel"]
SCALES = ["max", "mean", "least_squares"]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("center", ["mean", "median"])
def test_balanced_quantizer_equals_its_functions(center, scale, granularity, bits):
    weight, quantizer = randn(6, 40), BalancedQuantizer(bits, center, scale, granularity)
    expected = functional.balanced_fake_quantize(weight, bits, center=center, scale=scale, granularity=granularity)
    assert_equal(quantizer(weight), expected)
    assert_equal(
        quantizer.codes(weight), functional.balanced_codes(weight, bits, center=center, granularity=granularity)
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scale", SCALES)
def test_uniform_quantizer_equals_its_functions(scale, granularity, bits):
    weight, quantizer = randn(6, 40), UniformQuantizer(bits, scale, granularity)
    levels = functional.uniform_fake_quantize(weight, bits, scale=scale, granularity=granularity)
    assert_equal(quantizer(weight), levels)
    step = functional.uniform_scale(weight, bits, scale=scale, granularity=granularity)
    assert_equal(functional.dequantize(quantizer.codes(weight), step, bits), levels)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_dorefa_quantizer_equals_its_functions(granularity, bits):
    weight, quantizer = randn(6, 40), DoReFaQuantizer(bits, granularity)
    assert_equal(quantizer(weight), functional.dorefa_fake_quantize(weight, bits, granularity=granularity))
    assert_equal(quantizer.codes(weight), functional.dorefa_codes(weight, bits, granularity=granularity))


QUANTIZERS = [BalancedQuantizer, UniformQuantizer, DoReFaQuantizer]


@pytest.mark.parametrize("cls", QUANTIZERS)
@pytest.mark.parametrize(
    ("bits", "error", "message"),
    [
        (0, ValueError, "`weight_bits` must be from 1 to 8 .* got 0"),
        (9, ValueError, "`weight_bits` must be from 1 to 8 .* got 9"),
        (4.0, TypeError, "`weight_bits` must be an int from 1 to 8, got 4.0 of type float"),
        ("4", TypeError, "`weight_bits` must be an int from 1 to 8, got '4' of type str"),
        (True, TypeError, "`weight_bits` must be an int from 1 to 8, got True of type bool"),
        (None, TypeError, "`weight_bits` must be an int from 1 to 8, got None of type NoneType"),
    ],
)
def test_bad_bits_are_refused(cls, bits, error, message):
    with pytest.raises(error, match=message):
        cls(bits)


@pytest.mark.parametrize(
    ("cls", "option"),
    [
        (BalancedQuantizer, "center"),
        (BalancedQuantizer, "scale"),
        (BalancedQuantizer, "granularity"),
        (UniformQuantizer, "scale"),
        (UniformQuantizer, "granularity"),
    ],
)
def test_bad_option_is_refused(cls, option):
    with pytest.raises(ValueError, match=rf"`{option}` must be one of \[.*\], got 'best'"):
        cls(4, **{option: "best"})


def test_weight_quantizer_itself_is_abstract():
    with pytest.raises(TypeError, match="Can't instantiate abstract class WeightQuantizer"):
        WeightQuantizer(4)


@pytest.mark.parametrize("cls", QUANTIZERS)
def test_quantizers_compare_by_value_are_frozen_and_pickle(cls):
    assert cls(4) == cls(4) != cls(3)
    assert len({cls(4), cls(4), cls(3)}) == 2
    assert dataclasses.replace(cls(4), bits=8) == cls(8)
    assert pickle.loads(pickle.dumps(cls(4))) == cls(4)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'bits'"):
        cls(4).bits = 8


def test_width_can_be_replaced_only_by_a_valid_one():
    with pytest.raises(ValueError, match="`weight_bits` must be from 1 to 8"):
        dataclasses.replace(BalancedQuantizer(4), bits=16)


def test_scales_are_one_per_tensor_or_one_per_channel():
    assert BalancedQuantizer(4).scales(7) == UniformQuantizer(4).scales(7) == DoReFaQuantizer(4).scales(7) == 1
    assert BalancedQuantizer(4, granularity="per_channel").scales(7) == 7
    assert UniformQuantizer(4, granularity="per_channel").scales(7) == 7


@pytest.mark.parametrize("cls", QUANTIZERS)
def test_gradient_reaches_every_weight(cls):
    weight = randn(6, 40).requires_grad_()
    cls(3)(weight).sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert (weight.grad != 0).all()
