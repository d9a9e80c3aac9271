"""Passes over the values of recurrent steps: the compiled forms against the plain ones."""

import warnings

import pytest
import torch

from lightning_balq.kernels import cpu, pointwise
from tests.helpers import assert_equal, randn

EMPTY = float("nan")


def lstm_forward(rows, width, scale=1.0, dtype=torch.float32):
    """Arguments that are read, then those that are written."""
    shapes = [(rows, 4 * width), (rows, width), (rows, 4 * width), (rows, width), (rows, width), (rows, width)]
    made = [randn(*shape, seed=seed, dtype=dtype) * scale for seed, shape in enumerate(shapes)]
    return [*made[:3], *(torch.full_like(tensor, EMPTY) for tensor in made[3:])]


def lstm_backward(rows, width, dtype=torch.float32):
    shapes = [(rows, 4 * width), *[(rows, width)] * 5]
    gates, before, bounded, passed, by_hidden, by_cell = (
        randn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)
    )
    by_gates = torch.full_like(gates, EMPTY)
    return [gates.sigmoid(), before, bounded.tanh(), (passed > 0).to(dtype), by_hidden, by_cell, by_gates]


def gru_forward(rows, width, dtype=torch.float32):
    shapes = [(rows, 3 * width), (rows, 3 * width), (rows, width), (rows, 2 * width), (rows, width), (rows, width)]
    made = [randn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]
    return [*made[:3], *(torch.full_like(tensor, EMPTY) for tensor in made[3:])]


def gru_backward(rows, width, dtype=torch.float32):
    shapes = [(rows, 2 * width), (rows, width), (rows, 3 * width), *[(rows, width)] * 3]
    gates, candidate, product, before, passed, by_hidden = (
        randn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)
    )
    written = [torch.full_like(product, EMPTY), torch.full_like(before, EMPTY)]
    return [gates.sigmoid(), candidate.tanh(), product, before, (passed > 0).to(dtype), by_hidden, *written]


CASES = {
    pointwise.lstm_forward_: lstm_forward,
    pointwise.lstm_backward_: lstm_backward,
    pointwise.gru_forward_: gru_forward,
    pointwise.gru_backward_: gru_backward,
}
COMPILED = {"lstm_forward_": cpu.lstm_forward_, "lstm_backward_": cpu.lstm_backward_}


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 300])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_equals_the_plain_form(name, rows, width):
    plain = getattr(pointwise, name)
    expected, found = CASES[plain](rows, width), CASES[plain](rows, width)
    plain(*expected)
    assert COMPILED[name](*found)
    # Exponentials of two libraries, each within two units in the last place, and sums of two products.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=5e-7)


def test_gates_are_exact_to_rounding_over_their_whole_range():
    values = torch.cat([torch.linspace(-120, 120, 8001), torch.tensor([0.0, -0.0, 1e-30, -1e-6, 0.6249, 0.6251])])
    given = [torch.zeros(1, 4 * len(values)), torch.zeros(1, len(values)), values.repeat(4)[None].clone()]
    written = [torch.empty(1, len(values)) for _ in range(3)]
    assert cpu.lstm_forward_(*given, *written)
    entry, forget, candidate, exit_ = given[2].double().chunk(4, dim=1)
    sigmoid, tanh = values.double().sigmoid(), values.double().tanh()
    normal = sigmoid > 1e-37
    for gate in (entry, forget, exit_):
        assert float(((gate[0] - sigmoid) / sigmoid)[normal].abs().max()) < 3 * 2**-24
        assert float(gate[0][~normal].max()) < 2e-37
    assert float(((candidate[0] - tanh) / tanh)[tanh != 0].abs().max()) < 3 * 2**-24


def test_values_that_are_not_finite_stay_so():
    given = lstm_forward(1, 9)
    given[0][0, 4] = torch.nan
    assert cpu.lstm_forward_(*given)
    assert given[5].isnan().nonzero().tolist() == [[0, 4]]


@pytest.mark.parametrize("change", ["dtype", "strides"])
def test_compiled_code_takes_no_other_tensors(change):
    given = lstm_forward(2, 8, dtype=torch.float64 if change == "dtype" else torch.float32)
    if change == "strides":
        given[1] = given[1].t().contiguous().t()
    before = [tensor.clone() for tensor in given]
    assert not cpu.lstm_forward_(*given)
    torch.testing.assert_close(given, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_function_can_be_compiled_for_all_shapes_and_writes_in_place(function):
    torch._dynamo.reset()
    compiled = pointwise.compiled(function, backend="aot_eager")
    for rows, width in ((3, 8), (5, 8), (2, 6)):
        expected, found = CASES[function](rows, width), CASES[function](rows, width)
        function(*expected)
        compiled(*found)
        assert_equal(found, expected)


def test_function_that_cannot_be_compiled_runs_as_it_is_after_one_warning():
    def broken(graph, inputs):
        raise OSError("no compiler")

    expected, first, second = gru_forward(3, 8), gru_forward(3, 8), gru_forward(3, 8)
    pointwise.gru_forward_(*expected)
    run = pointwise.compiled(pointwise.gru_forward_, backend=broken)
    with pytest.warns(RuntimeWarning, match="gru_forward_ could not be compiled"):
        run(*first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(*second)
    assert_equal(first, expected)
    assert_equal(second, expected)


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_every_value_is_written(function):
    made = CASES[function](3, 8)
    function(*made)
    assert not any(tensor.isnan().any() for tensor in made)
