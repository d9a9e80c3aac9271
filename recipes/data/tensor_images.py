"""Small images that are kept decoded in memory or on a GPU, and augmented there a batch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.data.draws import AUGMENTATION, generator
from recipes.data.loader import Batch
from recipes.data.normalization import normalize


class TensorImages:
    """Batches of images in memory, on the device that the images are on. Nothing waits for that device.

    Augmentation is a crop of the image after padding it with black, and a flip in half of the cases. Both are drawn for
    all images of an epoch at once, so that they do not depend on how the epoch is cut into batches.

    Args:
        images: uint8, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        mean: of each channel, of values in [0, 1].
        deviation: of each channel, of values in [0, 1].
        padding: pixels added on each side before a crop of the size of the image.
        flip: flip half of the images from left to right.
        seed: of the augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        deviation: Sequence[float],
        *,
        padding: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        height, width = images.shape[2:]
        self._labels = labels
        self._mean, self._deviation = mean, deviation
        self._shifts = 2 * padding + 1
        # All crops of all images, (N, C, shifts, shifts, H, W): a view that copies nothing.
        self._crops = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        self._flip = flip
        self._seed = seed
        self._drawn = -1
        self._shift = torch.zeros(len(labels), 2, dtype=torch.int64, device=labels.device)
        self._flipped = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)

    def __call__(self, epoch: int, indices: list[int]) -> Batch:
        """Return some of the images, as they are augmented in an epoch."""
        self._draw(epoch)
        chosen = on_device(torch.tensor(indices), self._labels.device)
        down, right = self._shift[chosen].T
        pixels = self._crops[chosen, :, down, right]
        if self._flip:
            pixels = flip(pixels, self._flipped[chosen])
        return Batch(normalize(pixels, self._mean, self._deviation), self._labels[chosen])

    def _draw(self, epoch: int) -> None:
        """Draw the augmentation of an epoch, once."""
        if epoch == self._drawn:
            return
        draw = generator(self._seed, epoch, AUGMENTATION)
        images, device = len(self._labels), self._labels.device
        self._shift = on_device(torch.from_numpy(draw.integers(self._shifts, size=(images, 2))), device)
        if self._flip:
            self._flipped = on_device(torch.from_numpy(draw.integers(2, size=images, dtype=bool)), device)
        self._drawn = epoch


def flip(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Flip some of the images from left to right.

    Args:
        pixels: shape ``(N, C, H, W)``.
        chosen: which, bool, shape ``(N,)``.
    """
    return torch.where(chosen[:, None, None, None], pixels.flip(-1), pixels)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, which is not waited for."""
    return tensor.to(device, non_blocking=True)
