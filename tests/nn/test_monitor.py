"""Recorded statistics equal those counted by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_balq.nn import BalancedQuantizer, CodeMonitor, UniformQuantizer, quantize_
from tests.helpers import everything, randn, snapshot, tiny_model


def linear(rows):
    """Layer with this weight and no bias."""
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


def entropy(counts):
    p = np.array([count for count in counts if count]) / sum(counts)
    return float(-(p * np.log2(p)).sum())


# Outermost level 3 at 2 bits: levels -3, -1, 1, 3.
UNIFORM = everything(UniformQuantizer(2, scale="max"))


def test_statistics_equal_those_counted_by_hand():
    layer = linear([[-3.0, -2.5, -1.0, -0.5], [-1.2, 0.9, 3.0, 1.1]])
    quantize_(layer, UNIFORM)
    layers, overall = CodeMonitor().record(layer)
    counts = [2, 3, 2, 1]
    assert set(layers) == {""}
    np.testing.assert_allclose(layers[""].effective_bitwidth, entropy(counts), rtol=1e-6)  # kept in float32
    assert layers[""].bin_utilization == 1.0
    assert layers[""].imbalance == 3.0
    assert math.isnan(layers[""].code_flip_rate)
    np.testing.assert_equal(vars(overall), vars(layers[""]))  # equal, NaN included


def test_unused_code_shows():
    layer = linear([[-3.0, -1.0, 1.0, 1.0]])
    quantize_(layer, UNIFORM)
    layers, _ = CodeMonitor().record(layer)
    assert layers[""].bin_utilization == 0.75
    assert layers[""].imbalance == math.inf


def test_flips_are_counted_between_two_records():
    layer = linear([[-3.0, -1.0, 1.0, 3.0]])
    quantize_(layer, UNIFORM)
    monitor = CodeMonitor()
    monitor.record(layer)
    layer.weight.data[0, 1] = -1.5  # the same bin
    assert monitor.record(layer)[0][""].code_flip_rate == 0.0
    layer.weight.data[0, 1:3] = torch.tensor([1.0, -1.0])
    assert monitor.record(layer)[0][""].code_flip_rate == 0.5
    assert monitor.record(layer)[0][""].code_flip_rate == 0.0
    assert math.isnan(CodeMonitor().record(layer)[0][""].code_flip_rate)


def test_layers_of_different_bits_are_averaged_by_their_weights():
    model = nn.Sequential(linear([[-3.0, -1.0, 1.0, 3.0]]), linear([[-1.0] * 3, [-1.0] * 3, [1.0] * 3, [-1.0] * 3]))
    quantize_(model, everything(UniformQuantizer(2), weight_bits_by_layer={"1": 1}))
    monitor = CodeMonitor()
    monitor.record(model)
    model[0].weight.data[0, 0] = 1.0
    layers, overall = monitor.record(model)
    first, second = layers["0"], layers["1"]
    np.testing.assert_allclose(first.effective_bitwidth, entropy([1, 2, 1]), rtol=1e-6)  # kept in float32
    np.testing.assert_allclose(second.effective_bitwidth, entropy([9, 3]), rtol=1e-6)
    assert (first.bin_utilization, second.bin_utilization) == (0.75, 1.0)
    assert (first.imbalance, second.imbalance) == (math.inf, 3.0)
    assert (first.code_flip_rate, second.code_flip_rate) == (0.25, 0.0)
    np.testing.assert_allclose(
        overall.effective_bitwidth, (4 * first.effective_bitwidth + 12 * second.effective_bitwidth) / 16
    )
    assert overall.bin_utilization == (4 * 0.75 + 12 * 1.0) / 16
    assert overall.imbalance == math.inf
    assert overall.code_flip_rate == 1 / 16


def test_projections_of_an_attention_count_together():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 1, kdim=2, vdim=2, bias=False)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.where(torch.arange(parameter.numel()) % 2 == 0, -1.0, 1.0).view_as(parameter))
    quantize_(layer, everything(UniformQuantizer(1)))
    monitor = CodeMonitor()
    monitor.record(layer)
    layer.out_proj.weight.data.neg_()
    (statistics,) = monitor.record(layer)[0].values()
    assert statistics.effective_bitwidth == 1.0
    assert statistics.code_flip_rate == float(np.float32(16 / (16 + 8 + 8 + 16)))


def test_channels_of_a_transposed_convolution_are_those_of_its_output():
    layer = nn.ConvTranspose1d(2, 2, 2, bias=False)
    # Output channel 0 is ten times smaller: per channel, both use the same codes.
    layer.weight.data.copy_(torch.tensor([[[-0.3, -0.1], [-3.0, -1.0]], [[0.1, 0.3], [1.0, 3.0]]]))
    quantize_(layer, everything(UniformQuantizer(2, granularity="per_channel")))
    layers, _ = CodeMonitor().record(layer)
    assert (layers[""].effective_bitwidth, layers[""].imbalance) == (2.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weight_that_is_not_finite_raises_with_the_name_of_its_layer(value):
    model = tiny_model()
    quantize_(model, everything())
    monitor = CodeMonitor()
    monitor.record(model)
    model.hidden.weight.data[1, 2] = value
    with pytest.raises(ValueError, match="`weight` of layer 'hidden' holds NaN or infinite values"):
        monitor.record(model)


def test_error_names_the_projection_of_an_attention():
    layer = nn.MultiheadAttention(8, 2)
    quantize_(layer, everything())
    layer.out_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"`out_proj\.weight` of layer '' holds NaN"):
        CodeMonitor().record(layer)


def test_recording_changes_nothing():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), nn.Linear(4, 2))
    quantize_(model, everything(BalancedQuantizer(3), activation_bits=3))
    model(randn(5, 6))
    before = snapshot(model)
    CodeMonitor().record(model)
    assert snapshot(model) == before


def test_model_without_quantized_layers_is_refused_clearly():
    with pytest.raises(ValueError, match="no quantized layer"):
        CodeMonitor().record(nn.Linear(2, 2))
