"""Activations in a runtime are those of the model, at ties and at zero too."""

import pytest
import torch

from lightning_balq.export.description import QuantizedInput
from lightning_balq.export.onnx.activation import (
    Known,
    emit_codes,
    emit_integers,
    emit_levels,
    emit_levels_of,
    emit_levels_of_codes,
    unit,
    zero_point,
)
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.functional import activation_fake_quantize
from tests.export.onnx.runtimes import evaluate
from tests.helpers import assert_equal, randn

RANGES = [1.0, 0.7, 2.3456, 1e-3, 0.0]


def values_around(range_, bits, signed):
    """Random values, all ties with their neighbours in float32, exact zeros, and values far outside."""
    n = 2**bits - 1
    width = torch.tensor(2 * range_ if signed else range_)
    scale = width / torch.tensor(float(n))
    ties = (torch.arange(n + 1) - 0.5) * scale - (range_ if signed else 0.0)
    ties = torch.cat([ties, torch.nextafter(ties, torch.tensor(9e9)), torch.nextafter(ties, torch.tensor(-9e9))])
    tiny = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, range_, -range_])
    return torch.cat([randn(5000) * max(range_, 1e-3), ties, tiny])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_and_integers_are_those_of_the_model_bit_for_bit(bits, signed):
    for range_ in RANGES:
        given = QuantizedInput(bits, torch.tensor(range_).item(), signed, "unit", "auto")
        x = values_around(range_, bits, signed)
        expected = activation_fake_quantize(x, bits, range=torch.tensor(range_), signed=torch.tensor(signed))
        builder = GraphBuilder()
        outputs = [emit_levels(builder, "x", given)]
        if not (signed and bits == 8):  # which takes more than 8 bits
            integers = emit_integers(builder, "x", given)
            outputs += [emit_levels_of(builder, integers, given), integers]
        levels, *others = evaluate(builder, {"x": x}, outputs)
        assert_equal(levels + 0.0, expected + 0.0)  # the sign of a zero is no matter
        if others:
            assert_equal(others[0] + 0.0, expected + 0.0)
            stood_for = (others[1].double() - zero_point(given)) * unit(given)
            rounded = 3e-7 * range_ + 1e-35  # levels are float32; those of a range of 0 are next to nothing
            torch.testing.assert_close(stood_for, expected.double(), rtol=0, atol=rounded)


@pytest.mark.parametrize("bits", [1, 2, 7])
def test_an_exact_zero_stays_zero_and_what_is_next_to_it_does_not(bits):
    given = QuantizedInput(bits, 1.0, True, "unit", "signed")
    x = torch.tensor([0.0, -0.0, 1e-20, -1e-20])
    builder = GraphBuilder()
    levels, integers = evaluate(
        builder, {"x": x}, [emit_levels(builder, "x", given), emit_integers(builder, "x", given)]
    )
    assert (levels == 0).tolist() == (integers == 2**bits - 1).tolist() == [True, True, False, False]


def test_values_known_to_lie_inside_need_no_clip():
    given = QuantizedInput(3, 1.0, True, "unit", "signed")
    x = torch.cat([torch.linspace(-1, 1, 4001), torch.zeros(1)])
    builder = GraphBuilder()
    names = [emit_integers(builder, "x", given, Known(inside=inside)) for inside in (False, True)]
    one, other = evaluate(builder, {"x": x}, names)
    assert_equal(one, other)
    assert sum(node.op_type == "Min" for node in builder.nodes) == 1


@pytest.mark.parametrize("signed", [False, True])
def test_values_known_to_be_no_zeros_are_compared_with_none(signed):
    given = QuantizedInput(3, 1.0, signed, "unit", "auto")
    x = torch.linspace(-2, 2, 4000)
    assert not bool((x == 0).any())
    graphs, counts = [], []
    for known in (Known(), Known(nonzero=True)):
        builder = GraphBuilder()
        integers = emit_integers(builder, "x", given, known)
        counts.append(sum(node.op_type == "Equal" for node in builder.nodes))
        codes = emit_codes(builder, "x", given, known)
        names = [integers, emit_levels_of(builder, integers, given), emit_levels_of_codes(builder, codes, given)]
        graphs.append(evaluate(builder, {"x": x}, names))
    for one, other in zip(*graphs, strict=True):
        assert_equal(one, other)
    assert_equal(graphs[0][1], graphs[0][2])
    assert counts == [int(signed), 0]
