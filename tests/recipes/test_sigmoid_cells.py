import pytest
import torch
from torch import nn
from torch.testing import assert_close

from recipes.models.sigmoid_cells import SigmoidGRU, SigmoidLSTM
from tests.helpers import randn

KINDS = [SigmoidLSTM, SigmoidGRU]


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def reference_lstm(kernel, recurrent, hidden, cell):
    """One unit after the other, one sample."""
    gates = kernel + recurrent
    units = len(hidden)
    i, f, g, o = (gates[part * units : (part + 1) * units] for part in range(4))
    cell = sigmoid(f) * cell + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * sigmoid(cell), cell


def reference_gru(kernel, recurrent, hidden, _):
    units = len(hidden)
    r = sigmoid(kernel[:units] + recurrent[:units])
    z = sigmoid(kernel[units : 2 * units] + recurrent[units : 2 * units])
    n = sigmoid(kernel[2 * units :] + r * recurrent[2 * units :])
    return (1 - z) * n + z * hidden, None


def reference(layer, inputs):
    """Layers, samples and steps in plain loops."""
    step = reference_lstm if isinstance(layer, SigmoidLSTM) else reference_gru
    for cell in layer.cells:
        outputs = torch.zeros(*inputs.shape[:2], cell.units)
        for sample in range(inputs.shape[1]):
            hidden = memory = torch.zeros(cell.units)
            for time in range(len(inputs)):
                kernel = cell.kernel.weight @ inputs[time, sample] + cell.kernel.bias
                recurrent = cell.recurrent.weight @ hidden + cell.recurrent.bias
                hidden, memory = step(kernel, recurrent, hidden, memory)
                outputs[time, sample] = hidden
        inputs = outputs
    return inputs


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_a_plain_reference(kind, layers):
    torch.manual_seed(0)
    layer = kind(5, 3, layers)
    inputs = randn(7, 2, 5)
    # sums in another order
    assert_close(layer(inputs)[0], reference(layer, inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "torchs"), [(SigmoidLSTM, nn.LSTM), (SigmoidGRU, nn.GRU)])
def test_calls_and_shapes_are_those_of_torch(kind, torchs, layers):
    inputs = randn(7, 2, 5)
    ours, theirs = kind(5, 3, layers), torchs(5, 3, layers)

    def shapes(layer, state):
        outputs, state = layer(inputs, state)
        return outputs.shape, torch.utils._pytree.tree_map(lambda part: part.shape, state)

    assert shapes(ours, None) == shapes(theirs, None)
    assert shapes(ours, theirs(inputs)[1]) == shapes(theirs, theirs(inputs)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_in_two_pieces_equals_the_whole(kind):
    layer, inputs = kind(5, 3, 2), randn(8, 2, 5)
    whole, last = layer(inputs)
    first, state = layer(inputs[:3])
    second, state = layer(inputs[3:], state)
    # The products with the inputs have another number of rows in a piece, and may be summed in another order.
    assert_close(torch.cat([first, second]), whole, rtol=1e-6, atol=1e-7)
    assert_close(state, last, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_states_lie_between_zero_and_one_whatever_the_weights(kind):
    layer = kind(5, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(30)
    outputs, _ = layer(10 * randn(50, 4, 5))
    assert 0 <= outputs.min() < 0.1
    assert 0.7 < outputs.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_between_layers_and_in_training_only(kind):
    layer, inputs = kind(5, 3, 2, dropout=0.9), randn(8, 2, 5)
    assert not torch.equal(layer(inputs)[0], layer(inputs)[0])
    layer.eval()
    assert torch.equal(layer(inputs)[0], layer(inputs)[0])
    single = kind(5, 3, 1, dropout=0.9)
    assert torch.equal(single(inputs)[0], single(inputs)[0])
