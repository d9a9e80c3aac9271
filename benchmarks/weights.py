"""The cases that benchmarks of weights share: this library's quantizers and the reference of the bars."""

import torch
from torch import Tensor, nn

from benchmarks.alternatives import compiled, straight_through, uniform
from benchmarks.harness import Case
from lightning_balq import BalancedQuantizer, UniformQuantizer
from lightning_balq.functional._checks import Center

REFERENCE = "uniform, compiled"


def gaussian(*shape: int, device: torch.device, seed: int = 0) -> nn.Parameter:
    """Weight of a typical distribution and size, which takes a gradient as in training."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return nn.Parameter((0.05 * values).to(device))


def balanced(weight: Tensor, bits: int, *, center: Center = "mean", per_channel: bool = False) -> Case:
    """Return a call of this library's balanced quantizer."""
    granularity = "per_channel" if per_channel else "per_tensor"
    quantizer = BalancedQuantizer(bits, center=center, granularity=granularity)
    return lambda: quantizer(weight)


def library(weight: Tensor, bits: int, *, per_channel: bool = False) -> dict[str, Case]:
    """This library's quantizers, and the compiled uniform one of a user."""
    quantizer = UniformQuantizer(bits, granularity="per_channel" if per_channel else "per_tensor")
    return {
        REFERENCE: straight_through(compiled(uniform, bits, weight.numel()), weight, bits, per_channel=per_channel),
        "balanced mean": balanced(weight, bits, per_channel=per_channel),
        "balanced median": balanced(weight, bits, center="median", per_channel=per_channel),
        "uniform": lambda: quantizer(weight),
    }
