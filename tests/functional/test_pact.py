import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_balq.functional.activation import activation_fake_quantize
from lightning_balq.functional.pact import pact_fake_quantize
from tests import reference
from tests.helpers import assert_equal, randn

TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def with_gradients(x, alpha, bits, signed, upstream):
    x, alpha = x.clone().requires_grad_(), alpha.clone().requires_grad_()
    levels = pact_fake_quantize(x, alpha, bits, signed=signed)
    (levels * upstream).sum().backward()
    return levels.detach(), x.grad, alpha.grad


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_and_gradients_are_those_of_the_paper(bits):
    x, alpha, upstream = randn(40, 30) + 0.5, torch.tensor([1.2]), randn(40, 30, seed=1)
    levels, by_x, by_alpha = with_gradients(x, alpha, bits, FALSE, upstream)
    values, a, g = x.double().numpy(), float(alpha), upstream.double().numpy()
    # Quotients in float32 here, in float64 there.
    assert_close(levels.double(), torch.from_numpy(reference.pact(values, a, bits)), rtol=1e-5, atol=1e-6)
    assert_equal(by_x, torch.where((x >= 0) & (x < 1.2), upstream, 0.0))
    assert by_alpha.item() == pytest.approx((reference.pact_range_gradient(values, a) * g).sum(), rel=1e-5)


def test_signed_activations_are_clipped_on_both_sides():
    x, upstream = torch.tensor([-3.0, -1.0, -0.4, 0.0, 0.4, 1.0, 3.0]), torch.arange(1.0, 8)
    levels, by_x, by_alpha = with_gradients(x, torch.tensor([1.0]), 2, TRUE, upstream)
    assert_equal(levels, activation_fake_quantize(x, 2, range=torch.tensor(1.0), signed=TRUE))
    assert_equal(by_x, torch.tensor([0.0, 0, 3, 4, 5, 0, 0]))
    assert by_alpha.tolist() == [6 + 7 - 1 - 2]


def test_a_negative_range_acts_as_its_magnitude():
    x, upstream = randn(50), randn(50, seed=1)
    levels, by_x, by_alpha = with_gradients(x, torch.tensor([0.8]), 3, FALSE, upstream)
    mirrored, by_same_x, by_mirrored = with_gradients(x, torch.tensor([-0.8]), 3, FALSE, upstream)
    assert_equal((mirrored, by_same_x, by_mirrored), (levels, by_x, -by_alpha))


def test_values_that_are_not_finite_are_clipped():
    x = torch.tensor([np.inf, -np.inf, 0.2])
    levels, _, by_alpha = with_gradients(x, torch.tensor([1.0]), 1, FALSE, torch.ones(3))
    assert levels.tolist() == [1, 0, 0]
    assert by_alpha.tolist() == [1]


def test_a_scalar_stays_a_scalar():
    assert pact_fake_quantize(torch.tensor(0.4), torch.tensor([1.0]), 2, signed=FALSE).shape == ()


def test_range_is_not_rounded_to_the_type_of_the_activation():
    x, alpha = torch.tensor([0.5], dtype=torch.bfloat16), torch.tensor([0.501])  # 0.5 in bfloat16
    _, by_x, by_alpha = with_gradients(x, alpha, 2, FALSE, torch.ones(1))
    assert (by_x.tolist(), by_alpha.tolist()) == ([1], [0])


def test_gradient_of_the_range_is_summed_in_its_type():
    x = torch.full((301,), 2.0, dtype=torch.bfloat16)
    _, _, by_alpha = with_gradients(x, torch.tensor([1.0]), 2, FALSE, torch.ones(301, dtype=torch.bfloat16))
    assert by_alpha.tolist() == [301]  # bfloat16 has 300 and 302
