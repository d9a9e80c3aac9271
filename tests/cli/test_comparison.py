"""The rule by which an engine agrees with a model: medians and argmax decide, and no single value does."""

import pytest
import torch
from torch import nn

from lightning_balq import BalancedQuantizer, quantize_
from lightning_balq.cli.comparison import compare_exported
from lightning_balq.cli.runs import Exported
from lightning_balq.export import describe
from lightning_balq.export.onnx.marks import LayerCall
from tests.export.zoo import quantized
from tests.helpers import everything, randn

ROWS = 200


@pytest.fixture
def linear():
    """Quantized layer, its inputs and its outputs."""
    model, _ = quantized("linear", BalancedQuantizer(4), activation_bits=4)
    x = randn(ROWS, 6)
    with torch.no_grad():
        return model, x, model(x)


def compared(model, x, outputs, **more):
    return compare_exported(model, Exported([outputs], [], **more), (x,), {})


def test_one_value_that_is_far_off_is_no_criterion(linear):
    model, x, right = linear
    found = right.clone()
    found[0, right[0].argmin()] -= 100
    comparison = compared(model, x, found)
    assert comparison.agrees and not comparison.exact
    assert comparison.largest == pytest.approx(100) and comparison.median == 0
    assert comparison.magnitude == float(right.abs().max())


@pytest.mark.parametrize(("shift", "agrees"), [(0.0005, True), (0.002, False)])
def test_median_of_the_outputs_decides(shift, agrees, linear):
    model, x, right = linear
    comparison = compared(model, x, right + shift * right.abs().max())
    assert comparison.agrees == agrees
    assert comparison.median == pytest.approx(shift * comparison.magnitude, rel=1e-3)


@pytest.mark.parametrize(("rows", "agrees"), [(2, True), (3, False)])
def test_argmax_decides(rows, agrees, linear):
    model, x, right = linear
    found = right.clone()
    for row in range(rows):
        found[row, right[row].argmin()] = 100
    comparison = compared(model, x, found)
    assert comparison.argmax_agreement == pytest.approx(1 - rows / ROWS) and comparison.agrees == agrees


def test_either_of_two_equal_values_is_the_largest(linear):
    model, x, _ = linear
    with torch.no_grad():
        model.weight[1] = model.weight[0]
        model.bias[:] = torch.tensor([50.0, 50.0, 0.0, 0.0, 0.0])
        right = model(x)
    assert torch.equal(right[:, 0], right[:, 1]) and bool((right.argmax(1) == 0).all())
    found = right.clone()
    found[:, 1] += 1e-6 * 50
    assert compared(model, x, found).argmax_agreement == 1.0
    assert compared(model, x, found - torch.tensor([1e-2, 0.0, 0.0, 0.0, 0.0])).argmax_agreement == 1.0
    assert compared(model, x, found - torch.tensor([1e-2, 1e-2, -100.0, 0.0, 0.0])).argmax_agreement == 0.0


@pytest.mark.parametrize(("shift", "agrees"), [(0.0, True), (5e-6, True), (2e-5, False)])
def test_median_of_each_layer_decides_on_the_inputs_of_the_engine(shift, agrees, linear):
    model, x, right = linear
    other = randn(ROWS, 6, seed=1)
    with torch.no_grad():
        outputs = model(other)
    call = LayerCall("", {0: other}, {0: outputs + shift * outputs.abs().max()})
    comparison = compare_exported(model, Exported([right], [call]), (x,), {})
    (layer,) = comparison.layers
    assert comparison.agrees == agrees
    assert layer.magnitude == float(outputs.abs().max()) and comparison.note == ""
    # The shift is rounded to float32 with the outputs.
    assert layer.median == pytest.approx(shift * layer.magnitude, abs=2e-7 * layer.magnitude)


def test_layers_that_are_not_called_as_often_are_not_compared():
    model, (x,) = quantized("twice", BalancedQuantizer(4))
    with torch.no_grad():
        right = model(x)
    call = LayerCall("first", {0: x}, {0: right})
    for calls in ([], [call], [call, call, call]):
        comparison = compare_exported(model, Exported([right], calls, note="why"), (x,), {})
        assert comparison.layers[0].outputs is None and comparison.note == "not compared: first; why"


def test_other_outputs_are_refused(linear):
    model, x, right = linear
    with pytest.raises(
        ValueError, match=r"the model have the shapes \[\(200, 5\)\], and those of the file \[\(5, 200\)\]"
    ):
        compared(model, x, right.T)


@torch.no_grad()
def test_difference_of_a_layer_is_the_rounding_of_the_engine_and_not_of_torch():
    model = nn.Linear(4096, 3)
    quantize_(model, everything(BalancedQuantizer(4)))
    x = randn(ROWS, 4096)
    levels = describe(model.eval()).weights()["weight"].levels()
    best = (x.double() @ levels.double().T + model.bias.double()).float()
    assert not torch.equal(model(x), best)  # torch rounds on the way
    (layer,) = compare_exported(model, Exported([best], [LayerCall("", {0: x}, {0: best})]), (x,), {}).layers
    assert layer.outputs == 0
