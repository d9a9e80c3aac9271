"""Time of each function of ``lightning_balq.functional`` and of each quantizer, on one small weight or activation.

Question: which building block costs what?  Not measured: large tensors (bench_scaling), training (bench_steps).
Run: python -m pytest benchmarks/test_micro.py --benchmark-only

Absolute times of this machine at this moment, to look at while working on one of them; they are not recorded.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_balq import BalancedQuantizer, DoReFaQuantizer, UniformQuantizer
from lightning_balq import functional as balq
from lightning_balq.nn.quantizer import WeightQuantizer

BITS = (2, 4, 8)
QUANTIZERS: dict[str, Callable[[int], WeightQuantizer]] = {
    "mean": BalancedQuantizer,
    "median": lambda bits: BalancedQuantizer(bits, center="median"),
    "per_channel": lambda bits: BalancedQuantizer(bits, granularity="per_channel"),
    "least_squares": lambda bits: BalancedQuantizer(bits, scale="least_squares"),
    "uniform": UniformQuantizer,
    "dorefa": DoReFaQuantizer,
}


@pytest.fixture
def weight() -> Tensor:
    """Weight of a 3x3 convolution with 128 channels: 147 456 values."""
    return 0.05 * torch.randn(128, 128, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_weight_quantizer(benchmark: Any, weight: Tensor, name: str, bits: int) -> None:
    quantizer = QUANTIZERS[name](bits)
    weight.requires_grad_()
    assert benchmark(lambda: quantizer(weight)).shape == weight.shape


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("function", [balq.balanced_codes, balq.balanced_thresholds], ids=lambda f: f.__name__)
def test_partition(benchmark: Any, weight: Tensor, function: Callable[[Tensor, int], Tensor], bits: int) -> None:
    assert len(benchmark(lambda: function(weight, bits)))


@pytest.mark.parametrize("function", [balq.max_scale, balq.mean_scale], ids=lambda f: f.__name__)
def test_scale(benchmark: Any, weight: Tensor, function: Callable[[Tensor, int], Tensor]) -> None:
    assert benchmark(lambda: function(weight, 4)).shape == (1,)


@pytest.mark.parametrize("bits", BITS)
def test_code_histogram(benchmark: Any, weight: Tensor, bits: int) -> None:
    codes = balq.balanced_codes(weight, bits)
    assert benchmark(lambda: balq.code_histogram(codes, bits)).sum() == weight.numel()


@pytest.mark.parametrize("bits", BITS)
def test_activation_fake_quantize(benchmark: Any, weight: Tensor, bits: int) -> None:
    limit, signed = torch.tensor(0.1), torch.tensor(False)
    quantized = benchmark(lambda: balq.activation_fake_quantize(weight, bits, range=limit, signed=signed))
    assert quantized.shape == weight.shape
