"""Every bad argument raises the documented error, and the message names the argument and what came."""

import pytest
import torch

from lightning_balq.functional import (
    activation_codes,
    activation_fake_quantize,
    activation_scale,
    balanced_codes,
    balanced_fake_quantize,
    balanced_thresholds,
    code_histogram,
    dequantize,
    dorefa_codes,
    dorefa_fake_quantize,
    least_squares_scale,
    max_scale,
    mean_scale,
    quantization_error,
    uniform_codes,
    uniform_fake_quantize,
    uniform_scale,
)
from lightning_balq.functional._checks import check_bits

WEIGHT = torch.ones(2, 3)
CODES = torch.zeros(2, 3, dtype=torch.uint8)
STEP = torch.ones(1)
INTERVAL = {"range": torch.tensor(1.0), "signed": torch.tensor(False)}

# Every function of the folder that has the argument named, as a function of that argument alone.
OF_BITS = {
    "activation_codes": lambda bits: activation_codes(WEIGHT, bits, **INTERVAL),
    "activation_fake_quantize": lambda bits: activation_fake_quantize(WEIGHT, bits, **INTERVAL),
    "activation_scale": lambda bits: activation_scale(bits, **INTERVAL),
    "balanced_codes": lambda bits: balanced_codes(WEIGHT, bits),
    "balanced_fake_quantize": lambda bits: balanced_fake_quantize(WEIGHT, bits),
    "balanced_thresholds": lambda bits: balanced_thresholds(WEIGHT, bits),
    "balanced_thresholds-median": lambda bits: balanced_thresholds(WEIGHT, bits, center="median"),
    "balanced_codes-empty": lambda bits: balanced_codes(torch.zeros(0), bits, center="median"),
    "code_histogram": lambda bits: code_histogram(CODES, bits),
    "dequantize": lambda bits: dequantize(CODES, STEP, bits),
    "dorefa_codes": lambda bits: dorefa_codes(WEIGHT, bits),
    "dorefa_fake_quantize": lambda bits: dorefa_fake_quantize(WEIGHT, bits),
    "least_squares_scale": lambda bits: least_squares_scale(WEIGHT, CODES, bits),
    "max_scale": lambda bits: max_scale(WEIGHT, bits),
    "mean_scale": lambda bits: mean_scale(WEIGHT, bits),
    "uniform_codes": lambda bits: uniform_codes(WEIGHT, STEP, bits),
    "uniform_fake_quantize": lambda bits: uniform_fake_quantize(WEIGHT, bits),
    "uniform_scale": lambda bits: uniform_scale(WEIGHT, bits),
    "check_bits": check_bits,
}
OF_WEIGHT = {
    "balanced_codes": lambda weight: balanced_codes(weight, 2),
    "balanced_fake_quantize": lambda weight: balanced_fake_quantize(weight, 2),
    "balanced_thresholds": lambda weight: balanced_thresholds(weight, 2),
    "dorefa_codes": lambda weight: dorefa_codes(weight, 2),
    "dorefa_fake_quantize": lambda weight: dorefa_fake_quantize(weight, 2),
    "dorefa_fake_quantize-1": lambda weight: dorefa_fake_quantize(weight, 1),
    "least_squares_scale": lambda weight: least_squares_scale(weight, CODES, 2),
    "max_scale": lambda weight: max_scale(weight, 2),
    "mean_scale": lambda weight: mean_scale(weight, 2),
    "uniform_fake_quantize": lambda weight: uniform_fake_quantize(weight, 2),
    "uniform_scale": lambda weight: uniform_scale(weight, 2),
}
OF_GRANULARITY = {
    "balanced_codes": lambda weight, value: balanced_codes(weight, 2, granularity=value),
    "balanced_fake_quantize": lambda weight, value: balanced_fake_quantize(weight, 2, granularity=value),
    "balanced_thresholds": lambda weight, value: balanced_thresholds(weight, 2, granularity=value),
    "least_squares_scale": lambda weight, value: least_squares_scale(
        weight, torch.zeros_like(weight, dtype=torch.uint8), 2, granularity=value
    ),
    "dorefa_codes": lambda weight, value: dorefa_codes(weight, 2, granularity=value),
    "dorefa_fake_quantize": lambda weight, value: dorefa_fake_quantize(weight, 2, granularity=value),
    "max_scale": lambda weight, value: max_scale(weight, 2, granularity=value),
    "mean_scale": lambda weight, value: mean_scale(weight, 2, granularity=value),
    "uniform_fake_quantize": lambda weight, value: uniform_fake_quantize(weight, 2, granularity=value),
    "uniform_scale": lambda weight, value: uniform_scale(weight, 2, granularity=value),
}
OF_CENTER = {
    "balanced_codes": lambda value: balanced_codes(WEIGHT, 2, center=value),
    "balanced_fake_quantize": lambda value: balanced_fake_quantize(WEIGHT, 2, center=value),
    "balanced_thresholds": lambda value: balanced_thresholds(WEIGHT, 2, center=value),
}
OF_SCALE = {
    "balanced_fake_quantize": lambda value: balanced_fake_quantize(WEIGHT, 2, scale=value),
    "uniform_fake_quantize": lambda value: uniform_fake_quantize(WEIGHT, 2, scale=value),
    "uniform_scale": lambda value: uniform_scale(WEIGHT, 2, scale=value),
}


def each(functions):
    return pytest.mark.parametrize("function", functions.values(), ids=functions.keys())


@each(OF_BITS)
@pytest.mark.parametrize("bits", [0, 9, -1, 32])
def test_bits_out_of_range_raise_value_error(bits, function):
    with pytest.raises(ValueError, match=rf"`bits` must be from 1 to 8 .*, got {bits}$"):
        function(bits)


@each(OF_BITS)
@pytest.mark.parametrize(
    ("bits", "shown"),
    [
        (True, "True of type bool"),
        (2.0, "2.0 of type float"),
        ("2", "'2' of type str"),
        (None, "None of type NoneType"),
    ],
    ids=["True", "2.0", "'2'", "None"],
)
def test_bits_of_another_type_raise_type_error(bits, shown, function):
    with pytest.raises(TypeError, match=f"`bits` must be an int from 1 to 8, got {shown}"):
        function(bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_from_1_to_8_are_returned(bits):
    assert check_bits(bits) == bits


def test_message_about_bits_names_the_argument_of_the_caller():
    with pytest.raises(ValueError, match="`weight_bits` must be from 1 to 8"):
        check_bits(0, "weight_bits")


@each(OF_WEIGHT)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weight_that_is_not_floating_point_raises_type_error(dtype, function):
    with pytest.raises(TypeError, match=f"`weight` must be a real floating-point tensor, got dtype {dtype}"):
        function(WEIGHT.to(dtype))


@each(OF_WEIGHT)
@pytest.mark.parametrize(("weight", "shown"), [([1.0, 2.0], "list"), (1.0, "float")], ids=["list", "float"])
def test_weight_that_is_not_a_tensor_raises_type_error(weight, shown, function):
    with pytest.raises(TypeError, match=rf"`weight` must be a torch\.Tensor, got {shown}"):
        function(weight)


@pytest.mark.parametrize("function", [activation_codes, activation_fake_quantize])
def test_activation_that_is_not_floating_point_raises_type_error(function):
    with pytest.raises(TypeError, match=r"`x` must be a real floating-point tensor, got dtype torch\.int64"):
        function(torch.ones(3, dtype=torch.int64), 2, **INTERVAL)


@each(OF_GRANULARITY)
@pytest.mark.parametrize("value", ["per_layer", "", "PER_TENSOR", None], ids=str)
def test_unknown_granularity_raises_value_error(value, function):
    with pytest.raises(ValueError, match=rf"`granularity` must be one of .*per_channel.*, got {value!r}"):
        function(WEIGHT, value)


@each(OF_GRANULARITY)
def test_per_channel_of_a_scalar_weight_raises_value_error(function):
    with pytest.raises(ValueError, match='`granularity="per_channel"` needs a weight with an output channel'):
        function(torch.tensor(1.0), "per_channel")


@each(OF_CENTER)
@pytest.mark.parametrize("value", ["mode", "Mean", None], ids=str)
def test_unknown_center_raises_value_error(value, function):
    with pytest.raises(ValueError, match=rf"`center` must be one of \['mean', 'median'\], got {value!r}"):
        function(value)


@each(OF_SCALE)
@pytest.mark.parametrize("value", ["min", "MAX", None], ids=str)
def test_unknown_scale_raises_value_error(value, function):
    with pytest.raises(ValueError, match=rf"`scale` must be one of .*least_squares.*, got {value!r}"):
        function(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64], ids=str)
def test_codes_that_are_not_integers_raise_type_error(dtype):
    with pytest.raises(TypeError, match=f"`codes` must be integers, got dtype {dtype}"):
        code_histogram(torch.zeros(3, dtype=dtype), 2)


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_code_above_the_largest_raises_value_error(dtype, bits):
    codes = torch.tensor([0, 2**bits], dtype=dtype)
    with pytest.raises(ValueError, match=f"`codes` must be at most {2**bits - 1} at bits={bits}, got {2**bits}"):
        code_histogram(codes, bits)


def test_code_far_above_the_largest_raises_value_error():
    with pytest.raises(ValueError, match=f"`codes` must be at most 3 at bits=2, got {2**62}"):
        code_histogram(torch.tensor([0, 2**62]), 2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64], ids=str)
def test_negative_code_raises_value_error(dtype):
    with pytest.raises(ValueError, match="`codes` must be at least 0, got -1"):
        code_histogram(torch.tensor([0, -1, 1], dtype=dtype), 2)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 2, 3)], ids=str)
def test_weight_and_quantized_of_two_shapes_raise_value_error(shape):
    with pytest.raises(ValueError, match=r"`weight` and `quantized` must have one shape, got \(2, 3\) and \("):
        quantization_error(WEIGHT, torch.ones(shape))
