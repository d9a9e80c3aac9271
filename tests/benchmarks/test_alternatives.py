import pytest
import torch
from torch.testing import assert_close

from benchmarks.alternatives import (
    balanced_by_comparison,
    balanced_by_scatter,
    balanced_by_sort,
    compiled,
    straight_through,
    uniform,
)
from lightning_balq.functional import balanced_fake_quantize, uniform_fake_quantize


@pytest.fixture
def weight():
    return torch.randn(4, 60, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("function", [balanced_by_comparison, balanced_by_scatter, balanced_by_sort, uniform])
def test_an_alternative_computes_what_the_library_computes(function, bits, granularity, weight):
    quantize = uniform_fake_quantize if function is uniform else balanced_fake_quantize
    quantized = straight_through(function, weight, bits, per_channel=granularity == "per_channel")()
    # levels are scaled in another order, so that the last digit differs; a wrong code would differ by a level
    assert_close(quantized, quantize(weight, bits, granularity=granularity), rtol=1e-5, atol=1e-6)
    assert_close(*torch.autograd.grad(quantized.sum(), weight), torch.ones_like(weight), rtol=0, atol=0)


def test_a_compiled_form_is_made_once_for_each_width_and_size():
    assert compiled(uniform, 2, 10) is compiled(uniform, 2, 10)
    assert len({compiled(uniform, 2, 10), compiled(uniform, 3, 10), compiled(uniform, 2, 20)}) == 3
