"""Convolutions in integers are those of the levels."""

import pytest
import torch
from torch import nn

from lightning_balq.export.description import QuantizedInput
from lightning_balq.export.onnx.convolution import emit_convolution, why_not_gathered
from lightning_balq.export.onnx.forms import choose_form
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.functional import activation_fake_quantize
from tests.export.onnx.runtimes import evaluate
from tests.export.onnx.test_decode import make_weight
from tests.helpers import randn

LAYERS = {
    "1d": (lambda: nn.Conv1d(3, 5, 3), (2, 3, 9)),
    "1x1": (lambda: nn.Conv2d(3, 5, 1), (2, 3, 6, 7)),
    "1x1 strided": (lambda: nn.Conv2d(3, 5, 1, stride=2), (2, 3, 6, 7)),
    "padded": (lambda: nn.Conv2d(3, 5, 3, padding=(1, 2)), (2, 3, 6, 7)),
    "strided": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 3), padding=1), (2, 3, 8, 7)),
    "dilated": (lambda: nn.Conv2d(3, 5, 3, dilation=2, stride=2), (2, 3, 9, 10)),
    "same": (lambda: nn.Conv2d(3, 5, (2, 3), padding="same"), (2, 3, 6, 7)),
    "valid": (lambda: nn.Conv2d(3, 5, 3, padding="valid"), (2, 3, 6, 7)),
    "3d": (lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 2, 5, 4, 6)),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 3, 7, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_are_those_of_the_levels(name, bits, signed):
    make, shape = LAYERS[name]
    layer, x = make().double(), randn(*shape)
    x[..., ::3] = 0
    given = QuantizedInput(7, 1.5, signed, "observed", "auto")
    weight = make_weight(tuple(layer.weight.shape), bits, per_channel=bits != 3)
    levels = activation_fake_quantize(x, 7, range=torch.tensor(1.5), signed=torch.tensor(signed))
    with torch.no_grad():
        layer.weight.copy_(weight.levels())
        right = layer(levels.double())
    builder, form = GraphBuilder(), choose_form(weight, given)
    bias = layer.bias.detach().float()
    (found,) = evaluate(builder, {"x": x}, [emit_convolution(builder, "x", layer, given, weight, form, bias)])
    assert found.shape == right.shape
    # 2e-6: biases are rounded to float32 here, and sums of float32 levels to so much of the largest.
    assert float((found.double() - right).abs().max()) <= 2e-6 * float(right.abs().max())


def test_what_cannot_be_gathered_says_why():
    assert why_not_gathered(nn.Conv2d(4, 4, 3, groups=2)) == "it has 2 groups"
    assert why_not_gathered(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")) == "it pads by 'circular'"
    assert why_not_gathered(nn.Conv2d(4, 4, 3)) is None
