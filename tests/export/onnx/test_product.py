"""Products of integers in a runtime are those of the levels."""

import pytest
import torch

from lightning_balq.export.description import QuantizedInput, QuantizedWeight
from lightning_balq.export.onnx.activation import emit_integers
from lightning_balq.export.onnx.forms import choose_form
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.export.onnx.product import emit_product
from lightning_balq.functional import activation_fake_quantize
from tests.export.onnx.runtimes import evaluate
from tests.export.onnx.test_decode import make_weight
from tests.helpers import randn

SIZES = [(1, 1, 1), (3, 5, 7), (2, 64, 66), (5, 33, 9)]


def product(x, given, weight, bias=None):
    builder = GraphBuilder()
    form = choose_form(weight, given)
    assert not isinstance(form, str)
    return evaluate(
        builder, {"x": x}, [emit_product(builder, emit_integers(builder, "x", given), given, weight, form, bias)]
    )[0]


def expected(x, given, weight, bias=None):
    levels = activation_fake_quantize(
        x, given.bits, range=torch.tensor(given.range), signed=torch.tensor(given.signed)
    ).double()
    return levels @ weight.levels().double().t() + (0.0 if bias is None else bias.double())


def assert_close(found, right, bound):
    """Within 1e-6 of the largest sum that could be: below that, sums of float32 levels differ among themselves."""
    assert found.dtype == torch.float32
    assert float((found.double() - right).abs().max()) <= 1e-6 * float(bound)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("activation_bits", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_are_those_of_the_levels(bits, activation_bits, signed, per_channel):
    if signed and activation_bits == 8:
        return  # stays float: test_forms.py
    given = QuantizedInput(activation_bits, 1.2345, signed, "observed", "auto")
    for rows, inputs, outputs in SIZES:
        weight = make_weight((outputs, inputs), bits, per_channel=per_channel)
        x, bias = randn(rows, inputs), randn(outputs, seed=1)
        x[:, ::3] = 0
        right = expected(x, given, weight, bias)
        assert_close(product(x, given, weight, bias), right, right.abs().max())


@pytest.mark.parametrize("grid", ["half", "integer", "unit"])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_products_on_every_grid(bits, grid):
    given = QuantizedInput(3, 1.0, True, "unit", "auto")
    weight, x = make_weight((9, 31), bits, grid), randn(4, 31)
    right = expected(x, given, weight)
    assert_close(product(x, given, weight), right, right.abs().max())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("activation_bits", [5, 6, 7, 8])
def test_largest_products_of_one_sign_do_not_overflow(activation_bits, bits, signed):
    if signed and activation_bits == 8:
        return
    given = QuantizedInput(activation_bits, 1.0, signed, "unit", "auto")
    for code in (0, 2**bits - 1):  # all weights at one end, on both sides of the bound
        codes = torch.full((66, 96), code, dtype=torch.uint8)
        weight = QuantizedWeight(codes, torch.ones(1), bits, "odd", torch.float32, "")
        for value in (1.0, -1.0):
            x = torch.full((4, 96), value)
            right = expected(x, given, weight)
            assert_close(product(x, given, weight), right, right.abs().max() or 1)


@pytest.mark.parametrize("bits", [2, 6, 7])
def test_pruned_weights_multiply_as_zero(bits):
    given = QuantizedInput(7, 1.0, True, "unit", "auto")
    kept = randn(9, 31, seed=3) > 0.5
    kept[4] = False
    weight, x = make_weight((9, 31), bits, per_channel=True, kept=kept), randn(4, 31)
    found, right = product(x, given, weight), expected(x, given, weight)
    assert_close(found, right, right.abs().max())
    assert not found[:, 4].any()


def test_leading_dimensions_are_free():
    given, weight = QuantizedInput(2, 1.0, False, "unit", "auto"), make_weight((7, 5), 2)
    for shape in ((5,), (3, 5), (2, 3, 5), (2, 1, 3, 5)):
        x = randn(*shape)
        right = expected(x, given, weight)
        found = product(x, given, weight)
        assert found.shape == right.shape
        assert_close(found, right, right.abs().max())
