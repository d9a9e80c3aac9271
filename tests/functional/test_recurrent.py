"""The plain loop over the steps of a recurrent layer, against the layers of torch."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

from lightning_balq.functional.activation import activation_fake_quantize
from lightning_balq.functional.recurrent import StateGrid, initial_state, recurrent_fake_quantize, step_rows
from tests.helpers import assert_equal, randn

LAYERS = {
    "RNN_TANH": lambda **options: nn.RNN(3, 4, **options),
    "RNN_RELU": lambda **options: nn.RNN(3, 4, nonlinearity="relu", **options),
    "LSTM": lambda **options: nn.LSTM(3, 4, **options),
    "GRU": lambda **options: nn.GRU(3, 4, **options),
}
SIZES = [3, 2, 2, 1]
TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def run(layer, mode, x, hidden, cell, grid=None, suffix="", **options):
    """One direction of ``layer`` in the plain loop."""
    kernel, weight, bias, own_bias = (
        getattr(layer, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    projected = x @ kernel.t() + bias + (0 if mode == "GRU" else own_bias)
    own_bias = own_bias if mode == "GRU" else None
    return recurrent_fake_quantize(mode, projected, hidden, cell, weight, own_bias, grid, sizes=SIZES, **options)


def torch_result(layer, mode, x, hidden, cell):
    """States of all steps, last hidden and last cell state, of ``layer`` itself."""
    state = (hidden, cell) if mode == "LSTM" else hidden
    output, last = layer(PackedSequence(x, torch.tensor(SIZES)), state)
    return output.data, *(last if mode == "LSTM" else (last, cell))


@pytest.mark.parametrize("mode", LAYERS)
def test_states_without_a_grid_are_those_of_torch_in_both_directions(mode):
    torch.manual_seed(0)
    layer = LAYERS[mode](bidirectional=True).double()
    x, hidden, cell = (randn(*shape, seed=seed).double() for seed, shape in enumerate([(8, 3), (2, 3, 4), (2, 3, 4)]))
    states, last, last_cell = torch_result(layer, mode, x, hidden, cell)
    forward = run(layer, mode, x, hidden[0], cell[0])
    backward = run(layer, mode, x, hidden[1], cell[1], suffix="_reverse", reverse=True)
    # Torch adds the same products in another order.
    close = {"rtol": 1e-12, "atol": 1e-14}
    assert_close(torch.cat([forward.states, backward.states], dim=1), states, **close)
    assert_close(torch.stack([forward.hidden, backward.hidden]), last, **close)
    assert_close(torch.stack([forward.cell, backward.cell]), last_cell, **close)
    assert_equal(forward.raw, forward.states.detach())
    assert not forward.raw.requires_grad


def test_projected_states_are_those_of_torch():
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4, proj_size=2).double()
    x, hidden, cell = (randn(*shape, seed=seed).double() for seed, shape in enumerate([(8, 3), (1, 3, 2), (1, 3, 4)]))
    states, last, last_cell = torch_result(layer, "LSTM", x, hidden, cell)
    ours = run(layer, "LSTM", x, hidden[0], cell[0], projection=layer.weight_hr_l0)
    # Torch adds the same products in another order.
    assert_close((ours.states, ours.hidden, ours.cell), (states, last[0], last_cell[0]), rtol=1e-12, atol=1e-14)


def test_every_step_starts_from_the_levels_of_the_step_before():
    grid = StateGrid(2, torch.tensor(0.75), TRUE)
    projected, zero = torch.tensor([[0.3], [0.1], [-2.0]]), torch.zeros(1, 1)
    ours = recurrent_fake_quantize("RNN_TANH", projected, zero, zero, torch.eye(1), None, grid, sizes=[1, 1, 1])
    # Levels are -0.75, -0.25, 0.25 and 0.75; 0.25 is added to each of the next two.
    assert_equal(ours.states, torch.tensor([[0.25], [0.25], [-0.75]]))
    # `addmm` may round otherwise than a sum and a tanh.
    assert_close(ours.raw, torch.tensor([[0.3], [0.35], [-1.75]]).tanh())
    assert_equal(ours.hidden, torch.tensor([[-0.75]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_share_mixes_state_and_levels(dtype):
    state = randn(5, 4).to(dtype)
    levels = activation_fake_quantize(state, 2, range=torch.tensor(1.0), signed=TRUE)
    share = torch.tensor(0.3)
    mixed = StateGrid(2, torch.tensor(1.0), TRUE, share).quantize(state)
    share = share.to(dtype)
    assert_equal(mixed, state * (1 - share) + levels * share)
    assert_equal(StateGrid(2, torch.tensor(1.0), TRUE).quantize(state), levels)


@pytest.mark.parametrize("share", [None, 0.25])
@pytest.mark.parametrize("signed", [TRUE, FALSE], ids=["signed", "unsigned"])
def test_derivative_of_a_state_is_the_gradient_of_its_quantization(signed, share):
    grid = StateGrid(2, torch.tensor(0.5), signed, None if share is None else torch.tensor(share))
    state = torch.tensor([-2.0, -0.5, -0.1, 0.0, 0.3, 0.5, 0.6], requires_grad=True)
    (expected,) = torch.autograd.grad(grid.quantize(state).sum(), state)
    assert_equal(grid.derivative(state.detach()), expected)


def test_range_is_not_rounded_to_the_type_of_the_state():
    state = torch.tensor([0.5], dtype=torch.bfloat16)
    grid = StateGrid(2, torch.tensor(0.4999), TRUE)  # 0.5 in bfloat16
    assert grid.derivative(state).tolist() == [0]


def test_initial_state_has_the_levels_and_the_gradient_of_the_identity():
    state = torch.tensor([0.0, 0.4, -2.0], requires_grad=True)
    levels = initial_state(state, StateGrid(2, torch.tensor(1.5), TRUE))
    (gradient,) = torch.autograd.grad((levels * torch.tensor([1.0, 2.0, 3.0])).sum(), state)
    assert levels.tolist() == [0, 0.5, -1.5]
    assert gradient.tolist() == [1, 2, 3]


def test_rows_of_steps_are_counted_from_the_first_step_in_both_directions():
    assert step_rows(SIZES, reverse=False) == [(0, 3), (3, 2), (5, 2), (7, 1)]
    assert step_rows(SIZES, reverse=True) == [(7, 1), (5, 2), (3, 2), (0, 3)]
