import numpy as np
import pytest
import torch

from benchmarks.gpu.equalized import EqualizedGradientQuantization, EqualizedGradientQuantizer
from lightning_balq import BalancedQuantizer
from tests import reference
from tests.helpers import assert_equal, randn


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("center", ["mean", "median"])
def test_the_gradient_is_the_slope_of_the_literal_equalization(bits, center):
    weight = randn(300).requires_grad_()
    quantizer = EqualizedGradientQuantizer(bits, center)
    levels = quantizer(weight)
    assert_equal(levels.detach(), BalancedQuantizer(bits, center)(weight).detach())
    levels.backward(torch.full((300,), 2.0))
    values = weight.detach().numpy()
    equalized = reference.equalize(values, bits, center)
    scale = 2 * np.abs(values).max().astype(np.float64) * 2**bits / (2**bits - 1)
    codes = reference.balanced_partition(values, bits, center)[0]
    for code in range(2**bits):
        members = np.flatnonzero(codes == code)
        low, high = members[np.argsort(values[members])][[0, -1]]
        slope = scale * (equalized[high] - equalized[low]) / (float(values[high]) - float(values[low]))
        # The reference computes in float64.
        np.testing.assert_allclose(weight.grad.numpy()[members], 2 * slope, rtol=1e-5)


def test_a_bin_of_equal_values_has_the_gradient_of_the_identity():
    weight = torch.tensor([-1.0, -1.0, 3.0, 5.0], requires_grad=True)
    EqualizedGradientQuantizer(1)(weight).sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0, 5.0, 5.0]


def test_the_callback_uses_it_and_refuses_what_it_cannot_do():
    callback = EqualizedGradientQuantization(2, scale="mean", center="median")
    assert callback.weight_quantizer() == EqualizedGradientQuantizer(2, "median", "mean")
    for options in ({"scale": "learned"}, {"granularity": "per_channel"}):
        with pytest.raises(ValueError, match="`scale` must not be learned and `granularity` must be per_tensor"):
            EqualizedGradientQuantization(2, **options)
