"""Every option of the configuration is checked where it is written."""

import dataclasses

import pytest

from lightning_balq.nn import BalancedQuantizer, DoReFaQuantizer, QuantizationConfig, UniformQuantizer

BAD = {
    "weight is bits": ({"weight": 4}, TypeError, "`weight` must be a WeightQuantizer, got 4 of int"),
    "weight is a class": ({"weight": BalancedQuantizer}, TypeError, "`weight` must be a WeightQuantizer, got <class"),
    "activation_bits is 0": ({"activation_bits": 0}, ValueError, "`activation_bits` must be from 1 to 8 .* got 0"),
    "activation_bits is 9": ({"activation_bits": 9}, ValueError, "`activation_bits` must be from 1 to 8 .* got 9"),
    "activation_bits is float": (
        {"activation_bits": 2.0},
        TypeError,
        "`activation_bits` must be an int .* 2.0 of type",
    ),
    "activation_bits is True": ({"activation_bits": True}, TypeError, "`activation_bits` must be an int .* True of"),
    "activation_range": (
        {"activation_range": "minmax"},
        ValueError,
        r"`activation_range` must be one of \['lsq', 'observed', 'pact', 'unit'\], got 'minmax'",
    ),
    "activation_sign": (
        {"activation_sign": True},
        ValueError,
        r"`activation_sign` must be one of \['auto', 'signed', 'unsigned'\], got True",
    ),
    "quantize_first_last": ({"quantize_first_last": 1}, TypeError, "`quantize_first_last` must be a bool, got 1"),
    "include is a string": ({"include": "conv*"}, TypeError, r"`include` must be a sequence of patterns .* 'conv\*'"),
    "include is a set": ({"include": {"a"}}, TypeError, "`include` must be a sequence of patterns"),
    "include holds a number": ({"include": ["a", 1]}, TypeError, r"`include` must be a sequence .* got \['a', 1\]"),
    "include is empty": ({"include": []}, ValueError, "`include` must hold at least one pattern, got none"),
    "exclude is a string": ({"exclude": "conv"}, TypeError, "`exclude` must be a sequence of patterns .* 'conv'"),
    "exclude is None": ({"exclude": None}, TypeError, "`exclude` must be a sequence of patterns .* got None"),
    "weight bits are a list": ({"weight_bits_by_layer": ["a"]}, TypeError, "`weight_bits_by_layer` must map patterns"),
    "weight bits have no pattern": ({"weight_bits_by_layer": {1: 2}}, TypeError, "`weight_bits_by_layer` must map"),
    "weight bits are 9": (
        {"weight_bits_by_layer": {"a": 9}},
        ValueError,
        r"`weight_bits_by_layer\['a'\]` must be from",
    ),
    "weight bits are text": ({"weight_bits_by_layer": {"a": "2"}}, TypeError, r"`weight_bits_by_layer\['a'\]` must be"),
    "activation bits are an int": ({"activation_bits_by_layer": 4}, TypeError, "`activation_bits_by_layer` must map"),
    "activation bits are 0": (
        {"activation_bits_by_layer": {"a": 0}},
        ValueError,
        r"`activation_bits_by_layer\['a'\]` ",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_option_is_refused_with_its_name_and_value(kind):
    options, error, message = BAD[kind]
    with pytest.raises(error, match=message):
        QuantizationConfig(**options)


def test_defaults_are_four_bit_balanced_weights_and_float_activations():
    config = QuantizationConfig()
    assert config.weight == BalancedQuantizer(bits=4, center="mean", scale="max", granularity="per_tensor")
    assert config.activation_bits is None
    assert (config.activation_range, config.activation_sign) == ("observed", "auto")
    assert (config.include, config.exclude, config.quantize_first_last) == (("*",), (), False)
    assert (config.weight_bits_by_layer, config.activation_bits_by_layer) == ({}, {})


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_and_method_is_accepted(bits):
    for quantizer in (BalancedQuantizer, UniformQuantizer, DoReFaQuantizer):
        assert QuantizationConfig(quantizer(bits), activation_bits=bits).weight.bits == bits


def test_options_are_copied():
    exclude, bits = ["head"], {"conv": 8}
    config = QuantizationConfig(exclude=exclude, weight_bits_by_layer=bits)
    exclude.append("stem")
    bits["conv"] = 2
    assert config.exclude == ("head",)
    assert config.weight_bits_by_layer == {"conv": 8}


def test_configuration_is_frozen_and_compares_by_value():
    config = QuantizationConfig(exclude=["head"])
    assert config == QuantizationConfig(exclude=("head",))
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'exclude'"):
        config.exclude = ()
