"""A description holds what the forward computes, bit for bit."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_balq import (
    BalancedQuantizer,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    UniformQuantizer,
    functional,
    quantize_,
)
from lightning_balq.export import describe
from lightning_balq.nn import WeightQuantizer, activation_quantizers, quantized_layers
from tests.export.zoo import MODELS, assert_same_bits, build, quantized
from tests.helpers import everything, randn, snapshot

QUANTIZERS = {
    "balanced": BalancedQuantizer,
    "balanced mean per channel": lambda bits: BalancedQuantizer(bits, scale="mean", granularity="per_channel"),
    "balanced fit": lambda bits: BalancedQuantizer(bits, "median", "least_squares"),
    "uniform": UniformQuantizer,
    "uniform fit per channel": lambda bits: UniformQuantizer(bits, "least_squares", "per_channel"),
    "dorefa": DoReFaQuantizer,
    "dorefa per channel": lambda bits: DoReFaQuantizer(bits, "per_channel"),
    "learned": LearnedBalancedQuantizer,
    "learned per channel": lambda bits: LearnedBalancedQuantizer(bits, "per_channel"),
    "lsq": lambda bits: LSQQuantizer(max(bits, 2)),
    "lsq symmetric per channel": lambda bits: LSQQuantizer(bits, "per_channel", "symmetric"),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@torch.no_grad()
def used_weights(model):
    """What the forward uses, as the layers themselves compute it."""
    return {
        f"{name}.{key}".lstrip("."): state.quantize_weight(layer, key).detach().clone()
        for name, layer, state in quantized_layers(model)
        for key in state.weights
    }


def assert_describes(model):
    weights, used = describe(model).weights(), used_weights(model)
    assert weights.keys() == used.keys() != set()
    for key, weight in weights.items():
        assert_same_bits(weight.levels(), used[key])
        assert weight.shape == tuple(used[key].shape)
        assert int(weight.codes.max()) < 2**weight.bits


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("method", QUANTIZERS)
def test_levels_are_those_of_the_forward_for_every_method_and_width(method, bits):
    assert_describes(quantized("norms between", QUANTIZERS[method](bits))[0])


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", MODELS)
def test_levels_are_those_of_the_forward_for_every_layer(name, granularity):
    assert_describes(quantized(name, BalancedQuantizer(3, scale="mean", granularity=granularity))[0])


@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_levels_are_those_of_the_forward_in_every_type(dtype, method):
    assert_describes(quantized("norms between", QUANTIZERS[method](5), dtype=dtype)[0])


def test_levels_are_those_of_the_forward_where_all_weights_are_zero():
    model, _ = build("linear")
    torch.nn.init.zeros_(model.weight)
    quantize_(model, everything(BalancedQuantizer(2)))
    assert_describes(model)
    assert describe(model).layers[""].weights["weight"].scale.item() == 0


def test_levels_are_those_of_the_forward_of_trained_scales():
    model, _ = quantized("linear", LSQQuantizer(3))
    with torch.no_grad():
        model.balq_log_scale_weight.fill_(-1.234)
    assert_describes(model)
    assert describe(model).layers[""].weights["weight"].scale.item() == torch.tensor(-1.234).exp().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_row_is_kept_as_it_is(dtype):
    model, _ = build("embedding with padding", dtype=dtype)
    with torch.no_grad():
        model.weight[2] = randn(6, seed=5).to(dtype)  # not zero: a table that was loaded
    quantize_(model, everything(BalancedQuantizer(2), include=["type:Embedding"]))
    weight = describe(model).layers[""].weights["weight"]
    assert torch.equal(weight.levels()[2], model.weight[2])
    assert_describes(model)


def test_pruned_weights_are_zero():
    model, _ = quantized("pruned", BalancedQuantizer(2))
    weight = describe(model).layers["0"].weights["weight"]
    assert torch.equal(weight.kept, model[0].weight_mask.bool())
    assert torch.equal(weight.levels() == 0, ~weight.kept)


@pytest.mark.parametrize("method", QUANTIZERS)
def test_zeros_without_a_mask_are_zero(method):
    model, _ = build("pruned for good")
    with torch.no_grad():
        model[0].weight[0, :3] = -0.0
    quantize_(model, everything(QUANTIZERS[method](3)))
    assert_describes(model)
    weight = describe(model).layers["0"].weights["weight"]
    assert torch.equal(weight.kept, model[0].weight != 0)
    assert describe(model).layers["2"].weights["weight"].kept is None


def test_mask_that_is_no_mask_is_refused():
    model, _ = quantized("pruned", BalancedQuantizer(2))
    model[0].weight_mask[0, 0] = 0.5
    with pytest.raises(ValueError, match=r"weight '0.weight', .* its pruning mask holds values other than 0 and 1"):
        describe(model)


def test_tied_weights_are_described_once():
    weights = describe(quantized("tied", BalancedQuantizer(2))[0]).weights()
    assert weights["embedding.weight"] is weights["head.weight"]
    assert weights["embedding.weight"] is not weights["body.weight"]


@pytest.mark.parametrize("name", MODELS)
def test_other_tensors_are_the_float_state_dict_without_the_weights(name):
    description = describe(quantized(name, BalancedQuantizer(2), activation_bits=3, activation_range="lsq")[0])
    expected, _ = build(name)
    parts = ("_orig", "_mask", "_g", "_v", "_u")
    keys = {
        key
        for key in expected.state_dict()
        if "weight" not in key or key in {"1.weight", "norm1.weight", "norm2.weight"}
    }
    assert not any(key.endswith(parts) for key in description.tensors)
    assert set(description.tensors) == keys


@pytest.mark.parametrize("range_mode", ["unit", "observed", "pact", "lsq"])
def test_ranges_are_those_of_the_forward(range_mode):
    model, _ = quantized("norms between", activation_bits=3, activation_range=range_mode)
    described = describe(model).layers
    for name, layer, state in quantized_layers(model):
        given = described[name].inputs["input"]
        x = randn(4000, seed=1) * 3
        range_, signed = torch.tensor(given.range), torch.tensor(given.signed)
        assert given.bits == 3 and given.mode == range_mode
        with torch.no_grad():
            used = state.quantize_input(layer, "input", x)
        assert_same_bits(functional.activation_fake_quantize(x, 3, range=range_, signed=signed), used)


def test_hidden_states_are_inputs_of_the_layer():
    inputs = describe(quantized("lstm", activation_bits=4)[0]).layers[""].inputs
    assert list(inputs) == ["input", "state_l0", "state_l1"]
    assert (inputs["state_l1"].range, inputs["state_l1"].signed) == (1.0, True)


def test_inputs_that_were_never_seen_have_no_range():
    inputs = describe(quantized("self-attention", activation_bits=4)[0]).layers["attention"].inputs
    assert [inputs[name].known for name in ("query", "key", "value")] == [True, False, False]


def test_reasons_of_float_layers_are_there():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    quantize_(model)
    assert describe(model).reasons == {"0": "first layer", "2": "last layer"}


@pytest.mark.parametrize("name", ["spectral norm", "legacy spectral norm", "norms between", "lstm", "pruned"])
def test_describing_leaves_the_model_as_it_is(name):
    model, _ = quantized(name, activation_bits=3)
    model.train()
    before = snapshot(model)
    describe(model)
    assert snapshot(model) == before


def test_float_model_is_refused():
    with pytest.raises(ValueError, match="the model has no quantized layer: train it with a callback"):
        describe(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got dict"):
        describe({})


@pytest.mark.parametrize(("blend", "share"), [(0.0, "0%"), (0.25, "25%")])
def test_network_that_is_not_quantized_yet_is_refused(blend, share):
    model, _ = quantized("linear")
    next(state.schedule for _, _, state in quantized_layers(model)).set_blend(blend)
    with pytest.raises(ValueError, match=f"the network is not quantized yet, {share} of it is quantized"):
        describe(model)


def test_ranges_that_no_batch_has_shown_are_refused():
    model, _ = build("linear")
    quantize_(model, everything(activation_bits=2))
    with pytest.raises(ValueError, match="no training batch has shown the ranges of the activations yet"):
        describe(model)
    activation_quantizers(model)[0].batches += 1
    describe(model)


def test_weight_that_is_not_finite_is_refused():
    model, _ = quantized("linear")
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="`weight` of layer ''"):
        describe(model)


@dataclass(frozen=True)
class Cubes(WeightQuantizer):
    """Levels that are no multiples of anything."""

    def levels(self, weight):
        return weight.sign() * (1 + self.codes(weight)) ** 3

    def codes(self, weight):
        return (weight.abs() * 100).to(torch.uint8).clamp(max=3)


def test_levels_on_no_grid_are_refused():
    model, _ = quantized("linear", Cubes(2))
    with pytest.raises(ValueError, match=r"'weight', quantized by Cubes\(bits=2\), cannot be described: .* row 0"):
        describe(model)


def test_state_that_is_no_tensor_is_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 1}

        def set_extra_state(self, state):
            pass

    model = Extra(4, 3)
    quantize_(model, everything())
    with pytest.raises(ValueError, match="holds '_extra_state' of type dict; expected tensors alone"):
        describe(model)
