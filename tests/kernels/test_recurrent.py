"""Recurrences differentiated by hand, against the plain loop that autograd differentiates."""

import pytest
import torch

from lightning_balq import functional
from lightning_balq.functional.recurrent import StateGrid, step_rows
from lightning_balq.kernels import recurrent as kernels
from tests.helpers import randn

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
SIZES = {"equal": (3, 3, 3, 3), "ragged": (4, 3, 3, 1, 1), "one step": (2,), "one sequence": (1, 1, 1)}


def arguments(mode, sizes, dtype, width=5):
    shapes = [(sum(sizes), GATES[mode] * width), (sizes[0], width), (sizes[0], width), (GATES[mode] * width, width)]
    shapes += [(3 * width,)] if mode == "GRU" else []
    made = [(randn(*shape, seed=seed, dtype=dtype) / 2).requires_grad_() for seed, shape in enumerate(shapes)]
    return made if mode == "GRU" else [*made, None]


def grid(mode, share=None, bits=2):
    return StateGrid(bits, torch.tensor(0.6), torch.tensor(mode != "RNN_RELU"), share)


def outputs_and_gradients(function, mode, given, grid, **options):
    result = function(mode, *given, grid, **options)
    loss = sum((value * randn(*value.shape, seed=9, dtype=value.dtype)).sum() for value in result[:3])
    wanted = [tensor for tensor in given if tensor is not None]
    return list(result), list(torch.autograd.grad(loss, wanted))


@pytest.mark.parametrize("share", [None, 0.3], ids=["quantized", "blended"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mode", GATES)
def test_outputs_and_gradients_equal_those_of_the_plain_loop(mode, sizes, reverse, share):
    given = arguments(mode, sizes, torch.float64)
    levels = grid(mode, None if share is None else torch.tensor(share))
    options = {"sizes": sizes, "reverse": reverse}
    ours = outputs_and_gradients(kernels.recurrent_fake_quantize, mode, given, levels, **options)
    plain = outputs_and_gradients(functional.recurrent_fake_quantize, mode, given, levels, **options)
    # In float64, so that no state changes its level; functions of rows and of whole tensors round differently.
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", GATES)
def test_gradients_in_float32_are_close_to_those_in_float64(mode):
    sizes = (20,) * 12
    given = arguments(mode, sizes, torch.float64, width=16)
    levels = grid(mode, torch.tensor(0.0))  # nothing is rounded, so that both take the same path
    _, exact = outputs_and_gradients(kernels.recurrent_fake_quantize, mode, given, levels, sizes=sizes)
    single = [None if tensor is None else tensor.detach().float().requires_grad_() for tensor in given]
    _, rounded = outputs_and_gradients(kernels.recurrent_fake_quantize, mode, single, levels, sizes=sizes)
    for a, b in zip(rounded, exact, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 2e-6  # some ten roundings of 6e-8 for each of 12 steps


@pytest.mark.parametrize("mode", GATES)
def test_inputs_are_left_as_they_are_and_gradients_can_be_taken_twice(mode):
    given = arguments(mode, (3, 2), torch.float64)
    before = [None if tensor is None else tensor.detach().clone() for tensor in given]
    states = kernels.recurrent_fake_quantize(mode, *given, grid(mode), sizes=(3, 2)).states
    first = torch.autograd.grad(states.sum(), given[0], retain_graph=True)
    second = torch.autograd.grad(states.sum(), given[0])
    assert torch.equal(*first, *second)
    assert all(a is None or torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_second_derivative_is_that_of_the_plain_loop():
    given = arguments("GRU", (3, 3, 3), torch.float64)
    found = []
    for function in (kernels.recurrent_fake_quantize, functional.recurrent_fake_quantize):
        states = function("GRU", *given, grid("GRU"), sizes=(3, 3, 3)).states
        (gradient,) = torch.autograd.grad(states.pow(2).sum(), given[0], create_graph=True)
        found.append(torch.autograd.grad(gradient.pow(2).sum(), given[3])[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)  # sums in another order, in float64


def test_frozen_weight_gets_no_gradient():
    given = arguments("LSTM", (3, 3), torch.float64)
    given[3].requires_grad_(False)
    kernels.recurrent_fake_quantize("LSTM", *given, grid("LSTM"), sizes=(3, 3)).states.sum().backward()
    assert given[3].grad is None and given[0].grad.abs().max() > 0


def test_states_that_are_not_quantized_are_reported():
    given = arguments("LSTM", (3, 3), torch.float64)
    result = kernels.recurrent_fake_quantize("LSTM", *given, grid("LSTM"), sizes=(3, 3))
    assert not result.raw.requires_grad
    assert torch.equal(grid("LSTM").quantize(result.raw), result.states)


def test_rows_of_steps_follow_one_another():
    assert step_rows([3, 2, 2], reverse=False) == [(0, 3), (3, 2), (5, 2)]
    assert step_rows([3, 2, 2], reverse=True) == [(5, 2), (3, 2), (0, 3)]
