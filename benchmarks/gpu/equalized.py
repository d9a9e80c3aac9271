"""Balanced quantization whose gradient passes through the equalization, to compare it with the identity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_balq import BalancedQuantization, BalancedQuantizer


@dataclass(frozen=True)
class EqualizedGradientQuantizer(BalancedQuantizer):
    r"""Balanced levels, with the straight-through estimator at the rounding alone.

    Before it is rounded, a weight of a bin is mapped affinely from the smallest and the largest value of the bin, so
    that its gradient is multiplied by :math:`\Delta / (\max - \min)`, where :math:`\Delta` is the distance of two
    levels. It is 1 for a bin whose values are all equal, for which that is not defined.

    Source: Zhou et al. 2017 (arXiv:1706.07145), Algorithm 2, whose map is differentiated as it stands.
    """

    def attach_gradient(self, weight: Tensor, levels: Tensor) -> Tensor:
        """Return ``levels`` with the gradient of the affine maps."""
        slopes = slopes_of_bins(weight.detach(), self.codes(weight.detach()), levels.detach(), self.bits)
        return levels + (weight - weight.detach()) * slopes


def slopes_of_bins(weight: Tensor, codes: Tensor, levels: Tensor, bits: int) -> Tensor:
    """Return the slope of the map of each weight, in its shape and dtype.

    Args:
        weight: of one partition for all of it.
        codes: of the weight.
        levels: of the weight, symmetric around 0.
        bits: width of the codes.
    """
    values, bins = weight.float().flatten(), codes.long().flatten()
    empty = values.new_zeros(2**bits)
    largest = empty.scatter_reduce(0, bins, values, "amax", include_self=False)
    smallest = empty.scatter_reduce(0, bins, values, "amin", include_self=False)
    distance = 2 * levels.abs().amax().float() / (2**bits - 1)
    width = largest - smallest
    slopes = torch.where(width > 0, distance / width, 1.0)
    return slopes[bins].view_as(weight).to(weight.dtype)


@dataclass(eq=False)
class EqualizedGradientQuantization(BalancedQuantization):
    """``BalancedQuantization`` per tensor, with that gradient; its scale is not learned."""

    def weight_quantizer(self) -> EqualizedGradientQuantizer:
        """Build the weight quantizer that the arguments describe."""
        if self.scale == "learned" or self.granularity != "per_tensor":
            raise ValueError(
                "`scale` must not be learned and `granularity` must be per_tensor, got "
                f"{self.scale!r} and {self.granularity!r}"
            )
        return EqualizedGradientQuantizer(self.weight_bits, self.center, self.scale)
