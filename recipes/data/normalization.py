"""From pixels to the values that networks are trained on."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def normalize(pixels: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    r"""Return :math:`(x / 255 - \mu_c) / \sigma_c` of each channel, float32.

    Args:
        pixels: 0 to 255, of any type, shape ``(N, C, H, W)``.
        mean: of each channel, of values in [0, 1].
        deviation: of each channel, of values in [0, 1].

    Example:
        >>> normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), [0.5], [0.25]).flatten()
        tensor([-2.,  2.])
    """
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format, copy=True).div_(255)
    return values.sub_(_channels(tuple(mean), values.device)).div_(_channels(tuple(deviation), values.device))


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value of each channel, made once: a GPU would be waited for each time."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
