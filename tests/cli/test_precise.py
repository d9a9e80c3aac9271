"""Products that are summed in float64 are those of float64, and nothing else changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_balq.cli.precise import PreciseProducts
from tests.helpers import assert_equal, randn

LARGE = 1e4
"""Makes sums of float32 lose digits."""

LAYERS = {
    "linear": (lambda: nn.Linear(64, 7), (5, 64)),
    "linear of a sequence": (lambda: nn.Linear(64, 7, bias=False), (2, 5, 64)),
    "convolution": (lambda: nn.Conv2d(16, 5, 3, padding=1), (2, 16, 7, 7)),
    "grouped convolution": (lambda: nn.Conv1d(16, 4, 3, groups=2), (2, 16, 9)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(16, 5, 3, stride=2), (2, 16, 4, 4)),
    "batch norm": (lambda: nn.BatchNorm2d(16), (2, 16, 7, 7)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_that_of_float64_rounded_once(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().eval(), randn(*shape) + LARGE
    with PreciseProducts():
        found = layer(x)
    assert_equal(found, layer.double()(x.double()).float())


@torch.no_grad()
def test_products_of_matrices_are_too_and_outside_nothing_changes():
    one, other = randn(3, 5, 64) + LARGE, randn(3, 64, 7, seed=1)
    before = one @ other
    with PreciseProducts():
        found = one @ other
        half = one.half() @ other.half()
        rounded = F.hardtanh(one).sum()
    assert_equal(found, (one.double() @ other.double()).float())
    assert_equal(before, one @ other)
    assert not torch.equal(before, found)  # else this shows nothing
    assert_equal(half, one.half() @ other.half())
    assert_equal(rounded, F.hardtanh(one).sum())
