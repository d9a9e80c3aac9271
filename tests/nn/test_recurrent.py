"""Quantized recurrent layers: against float layers with replaced weights, and against a literal loop."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from lightning_balq import BalancedQuantizer, QuantizationConfig, UniformQuantizer, quantize_, unquantize_
from lightning_balq.functional import activation_fake_quantize
from lightning_balq.nn import activation_quantizers, quantized_layers, recurrent, update_ranges_
from lightning_balq.nn.states import state_names
from tests.helpers import assert_equal, everything, hand_quantized, randn, snapshot

LAYERS = {
    "rnn": lambda: nn.RNN(5, 6),
    "relu rnn": lambda: nn.RNN(5, 6, nonlinearity="relu", num_layers=2),
    "lstm": lambda: nn.LSTM(5, 6),
    "gru": lambda: nn.GRU(5, 6),
    "two layers": lambda: nn.LSTM(5, 6, num_layers=2),
    "bidirectional": lambda: nn.LSTM(5, 6, num_layers=2, bidirectional=True),
    "bidirectional gru": lambda: nn.GRU(5, 6, num_layers=2, bidirectional=True),
    "bidirectional rnn": lambda: nn.RNN(5, 6, bidirectional=True),
    "no bias": lambda: nn.LSTM(5, 6, bias=False),
    "gru without bias": lambda: nn.GRU(5, 6, bias=False),
    "batch first": lambda: nn.LSTM(5, 6, batch_first=True),
    "gru batch first": lambda: nn.GRU(5, 6, num_layers=2, batch_first=True),
    "projection": lambda: nn.LSTM(5, 6, num_layers=2, proj_size=3, bidirectional=True),
}
CELLS = {
    "rnn": lambda: nn.RNNCell(5, 6),
    "relu rnn": lambda: nn.RNNCell(5, 6, nonlinearity="relu"),
    "lstm": lambda: nn.LSTMCell(5, 6),
    "gru": lambda: nn.GRUCell(5, 6),
}
QUANTIZER = BalancedQuantizer(2, scale="mean")
WEIGHTS_ONLY = everything(QUANTIZER)
UNIT = everything(QUANTIZER, activation_bits=2, activation_range="unit", activation_sign="signed")


def layer(name, dtype=torch.float32):
    torch.manual_seed(0)
    return LAYERS[name]().to(dtype)


def replaced(module, quantizer=QUANTIZER):
    """Float copy whose weights are their levels."""
    names = [name for name, _ in module.named_parameters() if name.startswith("weight")]
    return hand_quantized(module, dict.fromkeys(names, quantizer))


def flat(result):
    """All tensors of the output of a recurrent layer, packed or not."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data, result.batch_sizes]
    return [tensor for part in result for tensor in flat(part)]


def gradients(module, result, *inputs):
    outputs = [tensor for tensor in flat(result) if tensor.is_floating_point()]
    loss = sum((tensor * randn(*tensor.shape, seed=7, dtype=tensor.dtype)).sum() for tensor in outputs)
    return torch.autograd.grad(loss, [*module.parameters(), *inputs], allow_unused=True)


def inputs_of(module, form):
    """An input in one of the forms that recurrent layers take, with the tensor that it is made of."""
    dtype = next(module.parameters()).dtype
    if form == "unbatched":
        x = randn(4, 5, dtype=dtype).requires_grad_()
        return x, x
    x = randn(*((3, 4, 5) if module.batch_first else (4, 3, 5)), dtype=dtype).requires_grad_()
    if form == "batch":
        return x, x
    lengths = torch.tensor([2, 4, 1])  # not sorted, one of length 1
    return pack_padded_sequence(x, lengths, batch_first=module.batch_first, enforce_sorted=False), x


def initial(module, form, seed=3):
    """Initial states in the shape that the layer asks for."""
    dtype = next(module.parameters()).dtype
    count = module.num_layers * (2 if module.bidirectional else 1)
    batch = () if form == "unbatched" else (3,)
    hidden = randn(count, *batch, getattr(module, "proj_size", 0) or module.hidden_size, seed=seed, dtype=dtype) / 3
    if not isinstance(module, nn.LSTM):
        return hidden
    return hidden, randn(count, *batch, module.hidden_size, seed=seed + 1, dtype=dtype)


# ---- weights only: torch's own kernels on quantized weights ----------------------------------------------------------


@pytest.mark.parametrize("form", ["batch", "unbatched", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "given state"])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_only_equals_float_layer_with_replaced_weights(name, with_state, form):
    float_layer = layer(name)
    expected_layer = replaced(float_layer)
    quantize_(float_layer, WEIGHTS_ONLY)
    results = []
    for module in (float_layer, expected_layer):
        given, x = inputs_of(module, form)
        result = module(given, initial(module, form)) if with_state else module(given)
        results.append((flat(result), gradients(module, result, x)))
    assert_equal(*results)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batch", "unbatched"])
def test_cell_with_quantized_weights_equals_float_cell_with_replaced_weights(name, batch):
    torch.manual_seed(0)
    cell = CELLS[name]()
    expected = replaced(cell)
    quantize_(cell, WEIGHTS_ONLY)
    results = []
    for module in (cell, expected):
        x = randn(*batch, 5).requires_grad_()
        result = module(x)
        results.append((flat(result), gradients(module, result, x)))
    assert_equal(*results)


@pytest.mark.parametrize("name", ["lstm", "bidirectional gru", "projection"])
@pytest.mark.parametrize("config", [WEIGHTS_ONLY, UNIT], ids=["W2", "W2A2"])
def test_every_parameter_changes_in_a_step(name, config):
    module = layer(name)
    quantize_(module, config)
    before = copy.deepcopy(dict(module.named_parameters()))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    torch.stack([tensor.sum() for tensor in flat(module(randn(4, 3, 5)))]).sum().backward()
    optimizer.step()
    assert [name for name, value in module.named_parameters() if torch.equal(value, before[name])] == []


def test_output_changes_with_the_bits():
    outputs = []
    for bits in (1, 2, 4, 8):
        module = layer("lstm")
        quantize_(module, everything(BalancedQuantizer(bits)))
        outputs.append(module(randn(4, 3, 5))[0])
    assert all(not torch.equal(a, b) for a, b in pairwise(outputs))


def test_second_forward_uses_the_weights_of_the_present():
    module = layer("lstm")
    quantize_(module, WEIGHTS_ONLY)
    module(randn(4, 3, 5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(randn(*parameter.shape, seed=9))
    fresh = copy.deepcopy(module)
    assert_equal(module(randn(4, 3, 5)), fresh(randn(4, 3, 5)))
    unquantize_(fresh)
    assert_equal(module(randn(4, 3, 5)), replaced(fresh)(randn(4, 3, 5)))


@pytest.mark.parametrize("config", [WEIGHTS_ONLY, UNIT], ids=["W2", "W2A2"])
@pytest.mark.parametrize("name", ["lstm", "gru", "projection"])
def test_quantizing_and_undoing_leaves_no_trace(name, config):
    module = layer(name)
    before, keys = snapshot(module), list(module.state_dict())
    quantize_(module, config)
    module(randn(4, 3, 5))
    assert list(module.state_dict()) == keys
    unquantize_(module)
    assert snapshot(module) == before


def test_exception_inside_the_forward_leaves_the_weights_float():
    module = layer("lstm")
    quantize_(module, WEIGHTS_ONLY)
    with pytest.raises(RuntimeError, match="input"):
        module(randn(4, 3, 4))
    unquantize_(module)
    assert_equal(module(randn(4, 3, 5)), layer("lstm")(randn(4, 3, 5)))


@pytest.mark.parametrize("config", [WEIGHTS_ONLY, UNIT], ids=["W2", "W2A2"])
def test_copies_and_pickles_compute_the_same(config):
    module = layer("bidirectional")
    quantize_(module, config)
    x = randn(4, 3, 5)
    expected = module(x)
    assert_equal(copy.deepcopy(module)(x), expected)
    assert_equal(pickle.loads(pickle.dumps(module))(x), expected)


def test_functional_call_quantizes_the_weights_that_are_passed():
    module = layer("lstm")
    quantize_(module, WEIGHTS_ONLY)
    weights = {name: randn(*value.shape, seed=5) for name, value in module.named_parameters()}
    called = torch.func.functional_call(module, weights, (randn(4, 3, 5),))
    expected = layer("lstm")
    expected.load_state_dict(weights)
    assert_equal(called, replaced(expected)(randn(4, 3, 5)))
    own = replaced(layer("lstm"))
    assert_equal(module(randn(4, 3, 5)), own(randn(4, 3, 5)))


def test_weight_norm_on_recurrent_weights_is_quantized_after_it():
    module = nn.utils.parametrizations.weight_norm(layer("lstm"), "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(1.5)
    expected = layer("lstm")
    with torch.no_grad():
        expected.weight_hh_l0.copy_(module.weight_hh_l0)
    quantize_(module, WEIGHTS_ONLY)
    assert_equal(module(randn(4, 3, 5)), replaced(expected)(randn(4, 3, 5)))


class Reading(nn.LSTM):
    """A user's class that reads a weight by name and calls torch's forward."""

    def forward(self, input, hx=None, *, factor=1.0):
        self.seen = self.weight_hh_l0.detach().clone()
        output, state = super().forward(input * factor, hx)
        return output, state


def test_user_subclass_runs_its_own_forward_on_quantized_weights():
    torch.manual_seed(0)
    module = Reading(5, 6)
    expected = replaced(module)
    quantize_(module, UNIT)
    assert state_names(module) == ()
    x = activation_fake_quantize(randn(4, 3, 5), 2, range=torch.tensor(1.0), signed=torch.tensor(True))
    assert_equal(module(randn(4, 3, 5), factor=2.0), expected(x, factor=2.0))
    assert_equal(module.seen, QUANTIZER(module.weight_hh_l0).detach())


def test_dropout_between_layers_is_that_of_torch():
    float_layer = nn.LSTM(5, 6, num_layers=2, dropout=0.5)
    expected = replaced(float_layer)
    quantize_(float_layer, WEIGHTS_ONLY)
    results = []
    for module in (float_layer, expected):
        torch.manual_seed(1)
        results.append(module(randn(4, 3, 5)))
    assert_equal(*results)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_bits_and_quantizer_differ_for_kernel_and_recurrent_weights():
    module = layer("two layers")
    config = QuantizationConfig(BalancedQuantizer(2), recurrent=UniformQuantizer(4, scale="mean"))
    quantize_(module, config)
    expected = layer("two layers")
    for name, parameter in expected.named_parameters():
        if name.startswith("weight_ih"):
            parameter.data = BalancedQuantizer(2)(parameter.data)
        if name.startswith("weight_hh"):
            parameter.data = UniformQuantizer(4, scale="mean")(parameter.data)
    assert_equal(module(randn(4, 3, 5)), expected(randn(4, 3, 5)))


def test_patterns_select_parts_of_a_recurrent_layer():
    model = nn.ModuleDict({"a": nn.LSTM(4, 4), "b": nn.GRU(4, 4), "cell": nn.GRUCell(4, 4)})
    config = QuantizationConfig(
        BalancedQuantizer(2),
        activation_bits=3,
        exclude=["b.recurrent", "a.state"],
        weight_bits_by_layer={"a.recurrent": 4, "cell": 8},
        activation_bits_by_layer={"b.state": 5},
    )
    plan = quantize_(model, config)
    found = {p.name: (p.weight_bits, p.recurrent_bits, p.activation_bits, p.state_bits) for p in plan.layers}
    assert found == {"a": (2, 4, 3, None), "b": (2, None, 3, 5), "cell": (8, 8, 3, 3)}
    assert {name: sorted(state.weights) for name, _, state in quantized_layers(model)} == {
        "a": ["weight_hh_l0", "weight_ih_l0"],
        "b": ["weight_ih_l0"],
        "cell": ["weight_hh", "weight_ih"],
    }
    rows = [line.split() for line in str(plan).splitlines() if line.strip()]
    assert {row[0]: row[1] for row in rows if row[0] in found} == {
        "a": "2+4/3+float",
        "b": "2+float/3+5",
        "cell": "8/3",
    }


def test_part_alone_can_be_included():
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 4), "fc": nn.Linear(4, 4)})
    plan = quantize_(model, QuantizationConfig(BalancedQuantizer(2), activation_bits=2, include=["rnn.kernel"]))
    (rnn,) = plan.quantized
    assert (rnn.weight_bits, rnn.recurrent_bits, rnn.activation_bits, rnn.state_bits) == (2, None, None, None)


def test_projection_is_one_of_the_recurrent_weights():
    module = layer("projection")
    quantize_(module, QuantizationConfig(BalancedQuantizer(2), recurrent=BalancedQuantizer(8)))
    ((_, _, state),) = quantized_layers(module)
    assert {name: q.bits for name, q in state.weights.items() if name.startswith("weight_h")} == {
        f"weight_{kind}_l{index}{suffix}": 8 for kind in ("hh", "hr") for index in (0, 1) for suffix in ("", "_reverse")
    }
    assert {q.bits for name, q in state.weights.items() if name.startswith("weight_ih")} == {2}


def test_two_widths_for_one_part_are_refused():
    config = QuantizationConfig(BalancedQuantizer(2), weight_bits_by_layer={"rnn": 2, "rnn.recurrent": 4})
    with pytest.raises(
        ValueError, match=r"gives layer 'rnn.recurrent' several widths: \{'rnn': 2, 'rnn.recurrent': 4\}"
    ):
        quantize_(nn.ModuleDict({"rnn": nn.LSTM(4, 4)}), config)


def test_recurrent_quantizer_of_the_wrong_type_is_refused():
    with pytest.raises(TypeError, match=r"`recurrent` must be a WeightQuantizer such as .* got 4 of int"):
        QuantizationConfig(recurrent=4)


def test_bytes_count_kernel_and_recurrent_weights_at_their_widths():
    plan = quantize_(nn.LSTM(5, 6), QuantizationConfig(BalancedQuantizer(2), recurrent=BalancedQuantizer(8)))
    assert plan.quantized_bytes == 24 * 5 * 2 // 8 + 4 + 24 * 6 + 4 + 2 * 24 * 4


# ---- hidden states ---------------------------------------------------------------------------------------------------

RANGE, SIGNED = torch.tensor(1.0), torch.tensor(True)


def levels(x, signed=SIGNED, range_=RANGE):
    return activation_fake_quantize(x, 2, range=range_, signed=signed)


def literal_steps(mode, x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, q):
    """One sequence through one direction, gate by gate as in the documentation of torch.nn, one step at a time."""
    outputs = []
    for x_t in x:
        a, b = F.linear(x_t, w_ih, b_ih), F.linear(h, w_hh, b_hh)
        if mode == "LSTM":
            (i_x, f_x, g_x, o_x), (i_h, f_h, g_h, o_h) = a.chunk(4), b.chunk(4)
            c = (f_x + f_h).sigmoid() * c + (i_x + i_h).sigmoid() * (g_x + g_h).tanh()
            h = (o_x + o_h).sigmoid() * c.tanh()
            h = h if w_hr is None else w_hr @ h
        elif mode == "GRU":
            (r_x, z_x, n_x), (r_h, z_h, n_h) = a.chunk(3), b.chunk(3)
            z = (z_x + z_h).sigmoid()
            h = (1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * h
        else:
            h = (a + b).tanh() if mode == "RNN_TANH" else (a + b).relu()
        h = q(h)
        outputs.append(h)
    return torch.stack(outputs), h, c


def literal(module, sequences, hidden, cell, q):
    """Outputs of each sequence, and the last states of all layers, one sequence at a time; ``q`` quantizes states."""
    directions = ["", "_reverse"] if module.bidirectional else [""]
    outputs, ends_h, ends_c = [], [], []
    for b, x in enumerate(sequences):
        final_h, final_c = [], []
        for index in range(module.num_layers):
            sides = []
            for d, suffix in enumerate(directions):
                place = index * len(directions) + d
                w = [
                    getattr(module, f"{name}_l{index}{suffix}", None)
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
                ]
                run = x.flip(0) if suffix else x
                states, h, c = literal_steps(module.mode, run, hidden[place, b], cell[place, b], *w, q)
                sides.append(states.flip(0) if suffix else states)
                final_h.append(h)
                final_c.append(c)
            x = torch.cat(sides, 1)
        outputs.append(x)
        ends_h.append(torch.stack(final_h))
        ends_c.append(torch.stack(final_c))
    return outputs, torch.stack(ends_h, 1), torch.stack(ends_c, 1)


@pytest.mark.parametrize("form", ["batch", "unbatched", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "given state"])
@pytest.mark.parametrize("name", LAYERS)
def test_quantized_states_equal_a_literal_loop_over_replaced_weights(name, with_state, form):
    module = layer(name, torch.float64)
    expected_layer = replaced(module)
    quantize_(module, UNIT)
    given, x = inputs_of(module, form)
    state = initial(module, form) if with_state else None
    result = module(given) if state is None else module(given, state)
    output, end = result
    end_h, end_c = end if isinstance(module, nn.LSTM) else (end, end)
    signed = torch.tensor(module.mode != "RNN_RELU")

    inner = x.transpose(0, 1) if form != "unbatched" and not module.batch_first else x
    rows = [levels(inner)] if form == "unbatched" else list(levels(inner))
    if form == "packed":
        rows = [row[:length] for row, length in zip(rows, [2, 4, 1], strict=True)]
    if state is None:
        count = len(end_h)
        width = expected_layer.proj_size or 6
        hidden, cell = x.new_zeros(count, len(rows), width), x.new_zeros(count, len(rows), 6)
    else:
        hidden, cell = state if isinstance(module, nn.LSTM) else (state, state)
        hidden, cell = (t.unsqueeze(1) if form == "unbatched" else t for t in (hidden, cell))
        hidden = levels(hidden, signed)
    outputs, h, c = literal(expected_layer, rows, hidden, cell, lambda t: levels(t, signed))

    # In float64, so that no state changes its level by rounding; sums are taken in another order.
    close = {"rtol": 0, "atol": 1e-12}
    if form == "packed":
        output, _ = pad_packed_sequence(output, batch_first=True)
        output = [row[:length] for row, length in zip(output, [2, 4, 1], strict=True)]
    elif form == "unbatched":
        output, end_h, end_c = [output], end_h.unsqueeze(1), end_c.unsqueeze(-2)
    else:
        output = list(output if module.batch_first else output.transpose(0, 1))
    for mine, theirs in zip(output, outputs, strict=True):
        torch.testing.assert_close(mine, theirs, **close)
    torch.testing.assert_close(end_h, h, **close)
    expected = [*outputs, h]
    mine = [*output, end_h]
    if isinstance(module, nn.LSTM):
        torch.testing.assert_close(end_c, c, **close)
        expected, mine = [*expected, c], [*mine, end_c]
    got = gradients(module, mine, x)
    wanted = gradients(expected_layer, expected, x)
    for (parameter, _), a, b in zip([*module.named_parameters(), ("input", x)], got, wanted, strict=True):
        torch.testing.assert_close(a, b, **close, msg=lambda text, parameter=parameter: f"{parameter}: {text}")


@pytest.mark.parametrize("name", LAYERS)
def test_hidden_state_is_on_its_levels_at_every_step(name):
    module = layer(name)
    quantize_(module, UNIT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)  # so that outer levels are reached too
    output, end = module(randn(4, 3, 5))
    hidden = end[0] if isinstance(end, tuple) else end
    grid = torch.linspace(0, 1, 4) if module.mode == "RNN_RELU" else torch.linspace(-1, 1, 4)
    for state in (output, hidden):
        distance = (state.detach()[..., None] - grid).abs().amin(-1)
        assert distance.max() <= 1e-6  # the grid itself is rounded
    assert len(output.unique()) >= 2


def test_dropout_lies_between_layers_and_not_behind_the_last():
    module = nn.LSTM(5, 6, num_layers=2, dropout=0.5)
    quantize_(module, UNIT)
    x = randn(4, 3, 5)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(module(x)[0])
    assert_equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert all(output.abs().min() > 0.3 for output in outputs)  # the smallest level is 1/3: nothing is dropped
    module.eval()
    assert_equal(module(x), module(x))


def test_cell_state_stays_float():
    module = layer("lstm")
    quantize_(module, UNIT)
    _, (_, cell) = module(randn(4, 3, 5))
    assert len(cell.unique()) == cell.numel()


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batch", "unbatched"])
def test_quantized_cell_equals_a_literal_step(name, batch):
    torch.manual_seed(0)
    cell = CELLS[name]().double()
    expected = replaced(cell)
    quantize_(cell, UNIT)
    x = randn(*batch, 5, dtype=torch.float64)
    mode = {"rnn": "RNN_TANH", "relu rnn": "RNN_RELU", "lstm": "LSTM", "gru": "GRU"}[name]
    signed = torch.tensor(mode != "RNN_RELU")
    first = cell(x)
    first = cell(x, first)
    hidden = first[0] if name == "lstm" else first
    weights = (expected.weight_ih, expected.weight_hh, expected.bias_ih, expected.bias_hh, None)
    rows = []
    for row in levels(x).reshape(-1, 5):
        zero = torch.zeros(6, dtype=torch.float64)
        rows.append(literal_steps(mode, torch.stack([row, row]), zero, zero, *weights, lambda t: levels(t, signed))[1])
    torch.testing.assert_close(hidden, torch.stack(rows).reshape(hidden.shape), rtol=0, atol=1e-12)


def test_state_that_is_zero_stays_zero_and_others_are_put_on_the_levels():
    module = nn.GRU(5, 6)
    quantize_(module, UNIT)
    x, zeros = randn(4, 3, 5), torch.zeros(1, 3, 6)
    assert_equal(module(x, zeros), module(x))
    given = randn(1, 3, 6) / 2
    assert_equal(module(x, given), module(x, levels(given)))
    assert not torch.equal(module(x, given)[0], module(x)[0])


def test_gradient_reaches_a_state_that_is_handed_in():
    module = layer("lstm")
    quantize_(module, UNIT)
    hidden, cell = (t.requires_grad_() for t in initial(module, "batch"))
    output, _ = module(randn(4, 3, 5), (hidden, cell))
    output.sum().backward()
    assert hidden.grad.abs().min() > 0 and cell.grad.abs().min() > 0


def test_second_derivative_equals_that_of_a_plain_loop():
    module = layer("lstm", torch.float64)
    expected = replaced(module)
    quantize_(module, UNIT)
    x = randn(4, 3, 5, dtype=torch.float64).requires_grad_()
    zeros = x.new_zeros(1, 3, 6)

    def penalty(output, weight):
        (gradient,) = torch.autograd.grad((output**2).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), weight)[0]

    ours = penalty(module(x)[0], module.weight_hh_l0)
    outputs, _, _ = literal(expected, list(levels(x).transpose(0, 1)), zeros, zeros, levels)
    theirs = penalty(torch.stack(outputs, 1), expected.weight_hh_l0)
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)  # sums in another order, in float64


def observing(**options):
    return everything(QUANTIZER, activation_bits=2, **options)


def test_first_batch_is_quantized_by_the_range_that_states_have_in_float():
    torch.manual_seed(0)
    module = nn.RNN(5, 6, nonlinearity="relu")
    expected = replaced(module)
    quantize_(module, observing(activation_sign="signed"))
    x = randn(4, 3, 5)
    output, _ = module(x)
    shown = activation_quantizers(module)[0].pending
    assert float(shown[1]) == 1
    states = expected(activation_fake_quantize(x, 2, range=shown[0], signed=SIGNED))[0].detach()
    bound = min(float(states.max()), 2 * 3**0.5 * float(states.mean()))
    assert float(output.detach().max()) == pytest.approx(bound, rel=1e-5)  # float32 sums
    assert len(output.detach().unique()) <= 4


def test_float_states_are_sampled_for_the_first_batch_alone(monkeypatch):
    module, sampled = layer("relu rnn"), []
    sample = recurrent._sample
    monkeypatch.setattr(recurrent, "_sample", lambda jobs: sampled.append(1) or sample(jobs))
    quantize_(module, observing())
    for _ in range(3):
        module(randn(4, 3, 5))
        update_ranges_(activation_quantizers(module))
    assert len(sampled) == 2  # one for each layer


@pytest.mark.parametrize("name", ["relu rnn", "projection"])
def test_range_of_an_unbounded_state_follows_training_batches_and_nothing_else(name):
    module = layer(name)
    quantize_(module, observing())
    states = [q for _, _, state in quantized_layers(module) for name, q in state.inputs.items() if "state" in name]
    assert len(states) == 2
    module(randn(4, 3, 5))
    update_ranges_(activation_quantizers(module))
    ranges = [q.range.clone() for q in states]
    assert all(float(r) > 0 for r in ranges)
    with torch.no_grad():
        module(randn(4, 3, 5) * 100)
    module.eval()
    module(randn(4, 3, 5) * 100)
    update_ranges_(activation_quantizers(module))
    assert [q.range for q in states] == ranges
    module.train()
    module(randn(4, 3, 5) * 100)
    update_ranges_(activation_quantizers(module))
    assert all(float(q.range) != float(r) for q, r in zip(states, ranges, strict=True))


def test_interval_of_a_state_is_that_of_its_cell():
    model = nn.ModuleDict(
        {
            "tanh": nn.RNN(4, 4),
            "relu": nn.RNN(4, 4, nonlinearity="relu"),
            "lstm": nn.LSTM(4, 4),
            "projected": nn.LSTM(4, 4, proj_size=2),
            "cell": nn.GRUCell(4, 4),
            "relu cell": nn.RNNCell(4, 4, nonlinearity="relu"),
        }
    )
    quantize_(model, observing())
    intervals = {
        name: next((q.range_mode, q.sign) for key, q in state.inputs.items() if "state" in key)
        for name, _, state in quantized_layers(model)
    }
    bounded, projected, positive = ("unit", "signed"), ("observed", "signed"), ("observed", "unsigned")
    assert intervals == {
        "tanh": bounded, "relu": positive, "lstm": bounded, "projected": projected, "cell": bounded,
        "relu cell": positive,
    }  # fmt: skip


def test_blending_mixes_states_and_weights():
    module = layer("lstm", torch.float64)
    float_layer = copy.deepcopy(module)
    quantize_(module, UNIT)
    (state,) = [state for _, _, state in quantized_layers(module)]
    x, zeros = randn(4, 3, 5, dtype=torch.float64), torch.zeros(1, 3, 6, dtype=torch.float64)
    state.schedule.set_blend(0.0)
    assert_equal(module(x), float_layer(x))
    state.schedule.set_blend(0.25)

    def mixed(value, quantized):
        return 0.75 * value + 0.25 * quantized

    for name, parameter in float_layer.named_parameters():
        if name.startswith("weight"):
            parameter.data = mixed(parameter.data, QUANTIZER(parameter.data))
    rows = list(mixed(x, levels(x)).transpose(0, 1))
    outputs, _, _ = literal(float_layer, rows, zeros, zeros, lambda t: mixed(t, levels(t)))
    torch.testing.assert_close(module(x)[0], torch.stack(outputs, 1), rtol=0, atol=1e-12)


def test_thousand_carried_batches_keep_no_graph():
    module = nn.LSTM(2, 3)
    quantize_(module, observing())
    state, x = None, randn(2, 1, 2)
    for _ in range(1000):
        output, state = module(x, state)
        state = tuple(t.detach() for t in state)
        update_ranges_(activation_quantizers(module))
    depth, node = 0, output.grad_fn
    while node is not None:
        depth, node = depth + 1, next((n for n, _ in node.next_functions if n is not None), None)
    assert depth < 20
    assert all(not q.pending.requires_grad and not q.range.requires_grad for q in activation_quantizers(module))


@pytest.mark.parametrize("length", [1, 7])
def test_packed_sequences_of_length_one_equal_single_steps(length):
    module = layer("bidirectional", torch.float64)
    quantize_(module, UNIT)
    rows = [randn(1, 5, seed=seed, dtype=torch.float64) for seed in range(length)]
    packed, _ = module(pack_sequence(rows))
    for row, output in zip(rows, packed.data, strict=True):
        torch.testing.assert_close(module(row)[0][0], output, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "shape", "error", "match"),
    [
        (lambda: nn.LSTM(5, 6), (4, 3, 4), RuntimeError, r"input.size\(-1\) must be equal to input_size"),
        (lambda: nn.LSTM(5, 6), (5,), ValueError, "LSTM: expected input to be 2D or 3D, got 1D"),
        (lambda: nn.GRU(5, 6), (0, 3, 5), ValueError, "GRU: expected a sequence of at least one step"),
    ],
)
def test_wrong_input_gets_an_error(make, shape, error, match):
    module = make()
    quantize_(module, UNIT)
    with pytest.raises(error, match=match):
        module(torch.zeros(shape))


@pytest.mark.parametrize("config", [WEIGHTS_ONLY, UNIT], ids=["W2", "W2A2"])
def test_cell_refuses_wrong_shapes(config):
    cell = nn.LSTMCell(5, 6)
    quantize_(cell, config)
    with pytest.raises(ValueError, match="LSTMCell: expected input to be 1D or 2D, got 3D"):
        cell(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"expected a state of 2 dimensions, as the input has, got shape \(6,\)"):
        cell(torch.zeros(3, 5), (torch.zeros(6), torch.zeros(6)))
    with pytest.raises(RuntimeError, match="input has inconsistent input_size"):
        cell(torch.zeros(3, 4))


class PlainCell(nn.GRUCell):
    """A user's class with a forward of its own."""

    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_user_subclass_of_a_cell_runs_its_own_forward():
    torch.manual_seed(0)
    cell = PlainCell(5, 6)
    expected = replaced(cell)
    quantize_(cell, UNIT)
    assert state_names(cell) == ()
    assert_equal(cell(randn(3, 5)), expected(levels(randn(3, 5))))


def test_part_of_a_cell_stays_float():
    cell = nn.GRUCell(5, 6)
    expected = hand_quantized(cell, {"weight_hh": QUANTIZER})
    quantize_(cell, everything(QUANTIZER, exclude=["kernel"]))
    assert_equal(cell(randn(3, 5)), expected(randn(3, 5)))


def test_wrong_state_gets_the_error_of_torch():
    module = layer("lstm")
    quantize_(module, UNIT)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 6\)"):
        module(randn(4, 3, 5), (torch.zeros(1, 2, 6), torch.zeros(1, 3, 6)))


def test_autocast_runs_the_steps_in_the_type_of_the_weights():
    module = layer("lstm")
    quantize_(module, UNIT)
    x = randn(4, 3, 5).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x)
    assert_equal(output, module(x.float())[0])


@pytest.mark.parametrize("config", [WEIGHTS_ONLY, UNIT, observing()], ids=["W2", "W2A2", "observed"])
def test_compiled_model_equals_the_eager_one(config):
    model = nn.Sequential(nn.Linear(5, 5), nn.LSTM(5, 6))
    quantize_(model, config)
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(3):
        x = randn(4, 3, 5, seed=seed)
        assert_equal(compiled(x), eager(x))
        for each in (model, eager):
            update_ranges_(activation_quantizers(each))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("config", [WEIGHTS_ONLY, UNIT, observing()], ids=["W2", "W2A2", "observed"])
def test_cell_compiles_into_one_graph(name, config):
    cell = CELLS[name]()
    quantize_(cell, config)
    eager = copy.deepcopy(cell)
    torch._dynamo.reset()
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        x = randn(3, 5, seed=seed)
        # Compiled, a cell is split into operations that round one by one.
        torch.testing.assert_close(compiled(x), eager(x), rtol=0, atol=1e-6)
        for each in (cell, eager):
            update_ranges_(activation_quantizers(each))


def test_tied_embedding_is_quantized_once_and_its_gradient_is_exact():
    torch.manual_seed(0)

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.rnn = nn.LSTM(6, 6)
            self.softmax = nn.Linear(6, 11)
            self.softmax.weight = self.embedding.weight

        def forward(self, words):
            return self.softmax(self.rnn(self.embedding(words))[0])

    model = Language()
    expected = hand_quantized(
        model, dict.fromkeys(["embedding.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"], QUANTIZER)
    )
    expected.softmax.weight = expected.embedding.weight
    plan = quantize_(model, everything(QUANTIZER, include=["*", "type:Embedding"]))
    assert [layer.weights for layer in plan.layers] == [66, 288, 0]
    words = torch.randint(11, (4, 3), generator=torch.Generator().manual_seed(0))
    results = []
    for module in (model, expected):
        loss = F.cross_entropy(module(words).flatten(0, 1), words.flatten())
        results.append((loss, torch.autograd.grad(loss, list(module.parameters()))))
    assert_equal(*results)
