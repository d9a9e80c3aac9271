"""Recurrent layers in a runtime compute what the quantized layer does, with states of their own."""

import copy

import pytest
import torch
from torch import nn

from lightning_balq import BalancedQuantizer, quantize_
from lightning_balq.export import describe
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.export.onnx.plan import plan_layers
from lightning_balq.export.onnx.recurrent import RecurrentEmitter
from lightning_balq.nn import activation_quantizers, settle_ranges_, update_ranges_
from tests.export.onnx.runtimes import evaluate
from tests.helpers import everything, randn

LAYERS = {
    "lstm": lambda: nn.LSTM(5, 7),
    "lstm of two layers and directions": lambda: nn.LSTM(5, 7, num_layers=2, bidirectional=True),
    "lstm without bias": lambda: nn.LSTM(5, 7, bias=False),
    "lstm with projection": lambda: nn.LSTM(5, 7, proj_size=3, num_layers=2),
    "gru": lambda: nn.GRU(5, 7, num_layers=2),
    "gru of two directions without bias": lambda: nn.GRU(5, 7, bidirectional=True, bias=False),
    "rnn": lambda: nn.RNN(5, 7, num_layers=2),
    "rnn of relu": lambda: nn.RNN(5, 7, nonlinearity="relu", bidirectional=True),
}
TOLERANCE = 2e-6
"""Runtimes have sigmoids and tanhs of their own, right to a few units in the last place."""


def quantized(make, bits=3, activation_bits=None, **options):
    torch.manual_seed(0)
    layer, x = make(), randn(6, 3, 5)
    quantizer = BalancedQuantizer(bits, scale="mean", granularity=options.pop("granularity", "per_tensor"))
    quantize_(layer, everything(quantizer, activation_bits=activation_bits, **options))
    layer.train()
    layer(x)
    update_ranges_(activation_quantizers(layer))
    settle_ranges_(activation_quantizers(layer))
    return layer.eval()


def states_of(layer, batch, seed=1):
    """Initial states with exact zeros among them."""
    directions = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if layer.mode == "LSTM" else 1]
    states = [randn(directions, batch, size, seed=seed + place) for place, size in enumerate(sizes)]
    for state in states:
        state[..., ::2] = 0
    return states


def emit(layer, mode):
    description = describe(layer)
    plan = plan_layers(description, {"": layer}, mode, integer_convolutions=False)[""]
    builder, emitter = GraphBuilder(), RecurrentEmitter(layer, plan.described, plan.forms)
    names = emitter.emit(builder, "x", "hidden", "cell" if layer.mode == "LSTM" else "")
    return plan, builder, [name for name in names if name]


@torch.no_grad()
def assert_same_as_layer(layer, builder, names, x):
    states = states_of(layer, x.shape[1])
    found = evaluate(builder, dict(zip(("x", "hidden", "cell"), [x, *states], strict=False)), names)
    outputs, ends = layer(x, tuple(states) if layer.mode == "LSTM" else states[0])
    for one, right in zip(found, [outputs, *(ends if layer.mode == "LSTM" else [ends])], strict=True):
        torch.testing.assert_close(one, right, rtol=0, atol=TOLERANCE)
    return found


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("mode", ["portable", "integer"])
@pytest.mark.parametrize("activation_bits", [None, 1, 4, 7, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_states_are_those_of_the_layer(name, activation_bits, mode, granularity):
    layer = quantized(LAYERS[name], 3, activation_bits, granularity=granularity)
    plan, builder, names = emit(layer, mode)
    for length, batch in ((6, 3), (1, 1), (9, 2)):  # one graph for all lengths
        x = randn(length, batch, 5, seed=length)
        x[:, :, 1] = 0
        assert_same_as_layer(layer, builder, names, x)
    if mode == "integer" and activation_bits in (1, 4, 7):
        assert plan.forms.keys() >= {key for key in plan.described.weights if not key.startswith("weight_hr")}
    if activation_bits is None or mode == "portable":
        assert not plan.forms


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_states_are_those_of_the_layer_at_every_width(name, bits):
    layer = quantized(LAYERS[name], bits, 3)
    _, builder, names = emit(layer, "integer")
    assert_same_as_layer(layer, builder, names, randn(6, 3, 5, seed=4))


@pytest.mark.parametrize("exclude", [["kernel"], ["recurrent"], ["state"], ["input"]])
@pytest.mark.parametrize("name", ["lstm of two layers and directions", "gru"])
def test_layers_of_which_parts_are_float(name, exclude):
    layer = quantized(LAYERS[name], 2, 3, exclude=exclude)
    for mode in ("portable", "integer"):
        _, builder, names = emit(layer, mode)
        assert_same_as_layer(layer, builder, names, randn(6, 3, 5, seed=4))


def test_a_hidden_state_that_is_zero_stays_zero():
    layer = quantized(lambda: nn.LSTM(5, 7, bias=False), 2, 3)
    for mode in ("portable", "integer"):
        _, builder, names = emit(layer, mode)
        x, nothing = torch.zeros(4, 2, 5), torch.zeros(1, 2, 7)
        found = evaluate(builder, {"x": x, "hidden": nothing, "cell": nothing}, names)
        assert not any(state.any() for state in found)
        assert not layer(x)[0].detach().any()


def body_of(builder):
    """Kinds of the nodes in the loops."""
    loops = [node for node in builder.nodes if node.op_type == "Scan"]
    bodies = [attribute.g for node in loops for attribute in node.attribute if attribute.name == "body"]
    return [node.op_type for body in bodies for node in body.node]


# A GRU compares the state before a step as well, which may be the first, given by the caller.
@pytest.mark.parametrize(("kind", "place", "fewest"), [(nn.LSTM, 2 * 7, 0), (nn.GRU, 2 * 7, 1), (nn.RNN, 0, 0)])
def test_states_are_compared_with_zero_only_where_a_unit_has_no_bias(kind, place, fewest):
    layer = quantized(lambda: kind(5, 7), 2, 3)
    _, builder, _ = emit(layer, "integer")
    assert body_of(builder).count("Equal") == fewest and "MatMulInteger" in body_of(builder)
    with torch.no_grad():
        layer.bias_ih_l0[place] = 1.0
        layer.bias_hh_l0[place] = -1.0
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
            weight.zero_()
    _, builder, names = emit(layer, "integer")
    assert body_of(builder).count("Equal") == fewest + 1
    if kind is nn.GRU:
        return  # its reset gate comes between the biases
    outputs = assert_same_as_layer(layer, builder, names, randn(6, 3, 5, seed=4))[0]
    assert int((outputs == 0).sum()) == 6 * 3


def test_emitting_changes_nothing():
    layer = quantized(LAYERS["gru"], 2, 3)
    before = copy.deepcopy(layer.state_dict())
    emit(layer, "integer")
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
