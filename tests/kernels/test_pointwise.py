"""Passes over the values of recurrent steps: the compiled forms against the plain ones."""

import functools
import warnings

import pytest
import torch

from lightning_balq.functional.recurrent import StateGrid
from lightning_balq.kernels import cpu, pointwise
from tests.helpers import assert_equal, randn

EMPTY = float("nan")
GRID = StateGrid(2, torch.tensor(0.3), torch.tensor(True))
GRIDS = {
    "signed": GRID,
    "unsigned": StateGrid(3, torch.tensor(0.3), torch.tensor(False)),
    "blended": GRID._replace(share=torch.tensor(0.25)),
    "range 0": GRID._replace(range=torch.tensor(0.0)),
}


def made(rows, widths, dtype):
    return [randn(rows, width, seed=seed, dtype=dtype) for seed, width in enumerate(widths)]


def empty(rows, widths, dtype):
    return [torch.full((rows, width), EMPTY, dtype=dtype) for width in widths]


def lstm_forward(rows, width, dtype=torch.float32):
    """Arguments in their order; those that are only written hold no numbers."""
    projected, gates, cell = made(rows, (4 * width, 4 * width, width), dtype)
    return [projected, gates, *empty(rows, [width] * 5, dtype), cell]


def lstm_backward(rows, width, dtype=torch.float32):
    gates, before, bounded, raw, by_states, by_hidden, by_cell = made(rows, (4 * width, *[width] * 6), dtype)
    (by_gates,) = empty(rows, [4 * width], dtype)
    return [gates.sigmoid(), before, bounded.tanh(), raw.tanh(), by_states, by_gates, by_hidden, by_cell]


def gru_forward(rows, width, dtype=torch.float32):
    projected, product, hidden = made(rows, (3 * width, 3 * width, width), dtype)
    return [projected, product, *empty(rows, (2 * width, width, width, width), dtype), hidden]


def gru_backward(rows, width, dtype=torch.float32):
    widths = (2 * width, width, 3 * width, *[width] * 4)
    gates, candidate, product, before, raw, by_states, by_hidden = made(rows, widths, dtype)
    written = empty(rows, (3 * width, width), dtype)
    return [gates.sigmoid(), candidate.tanh(), product, before, raw.tanh(), by_states, *written, by_hidden]


CASES = {
    pointwise.lstm_forward_: lstm_forward,
    pointwise.lstm_backward_: lstm_backward,
    pointwise.gru_forward_: gru_forward,
    pointwise.gru_backward_: gru_backward,
}
GATES, RAW, STATES, HIDDEN = 1, 4, 5, 6  # places in lstm_forward


def compiled_forward(*arguments):
    forward, _ = cpu.lstm_steps(arguments[0], GRID)
    forward(*arguments)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 300])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("place", [0, 1], ids=["forward", "backward"])
def test_compiled_code_equals_the_plain_form(place, grid, rows, width):
    plain = pointwise.LSTM[place]
    expected, found = CASES[plain](rows, width), CASES[plain](rows, width)
    plain(*expected, grid)
    cpu.lstm_steps(found[0], grid)[place](*found)
    if plain is pointwise.lstm_forward_:  # which of two levels is nearer is decided by the last bit of the state
        raw, states, hidden = found[RAW], found[STATES], found[HIDDEN]
        assert_equal(hidden, states)
        # Products and sums of the blend are not rounded one by one.
        tolerance = 1e-7 if grid.share is not None else 0
        torch.testing.assert_close(states, grid.quantize(raw), rtol=0, atol=tolerance)
        del found[STATES : HIDDEN + 1], expected[STATES : HIDDEN + 1]
    # Exponentials of two libraries, each within two units in the last place, and sums of two products.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=5e-7)


def test_gates_are_exact_to_rounding_over_their_whole_range():
    values = torch.cat([torch.linspace(-120, 120, 8001), torch.tensor([0.0, -0.0, 1e-30, -1e-6, 0.6249, 0.6251])])
    given = lstm_forward(1, len(values))
    given[0].zero_()
    given[GATES].copy_(values.repeat(4))
    given[-1].zero_()
    compiled_forward(*given)
    entry, forget, candidate, exit_ = given[GATES].double().chunk(4, dim=1)
    sigmoid, tanh = values.double().sigmoid(), values.double().tanh()
    normal = sigmoid > 1e-37
    for gate in (entry, forget, exit_):
        assert float(((gate[0] - sigmoid) / sigmoid)[normal].abs().max()) < 3 * 2**-24
        assert float(gate[0][~normal].max()) < 2e-37
    assert float(((candidate[0] - tanh) / tanh)[tanh != 0].abs().max()) < 3 * 2**-24


def test_values_that_are_not_finite_stay_so():
    given = lstm_forward(1, 9)
    given[0][0, 4] = torch.nan
    compiled_forward(*given)
    assert given[RAW].isnan().nonzero().tolist() == [[0, 4]]


def test_other_types_take_the_plain_form():
    assert cpu.lstm_steps(randn(2, 8, dtype=torch.float64), GRID) is None
    expected, found = lstm_forward(2, 8, torch.float64), lstm_forward(2, 8, torch.float64)
    pointwise.lstm_forward_(*expected, GRID)
    pointwise.fused(pointwise.LSTM, found[0], GRID)[0](*found)
    assert_equal(found, expected)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_function_can_be_compiled_for_all_shapes_and_writes_in_place(function, grid):
    torch._dynamo.reset()
    compiled = pointwise.compiled(function, backend="aot_eager")
    for rows, width in ((3, 8), (5, 8), (2, 6)):
        expected, found = CASES[function](rows, width), CASES[function](rows, width)
        function(*expected, grid)
        compiled(*found, grid=grid)
        assert_equal(found, expected)


def test_function_that_cannot_be_compiled_runs_as_it_is_after_one_warning():
    def broken(graph, inputs):
        raise OSError("no compiler")

    expected, first, second = gru_forward(3, 8), gru_forward(3, 8), gru_forward(3, 8)
    pointwise.gru_forward_(*expected, GRID)
    run = functools.partial(pointwise.compiled(pointwise.gru_forward_, backend=broken), grid=GRID)
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
    function(*made, GRID)
    assert not any(tensor.isnan().any() for tensor in made)
