"""From pixels to the values that networks are trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(pixels: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    r"""Return :math:`(x / 255 - \mu_c) / \sigma_c` of each channel, float32.

    Args:
        pixels: uint8, shape ``(N, C, H, W)``.
        mean: of each channel, of values in [0, 1].
        deviation: of each channel, of values in [0, 1].

    Example:
        >>> normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), [0.5], [0.25]).flatten()
        tensor([-2.,  2.])
    """
    shape = 1, -1, 1, 1
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return values.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(deviation).view(shape))
