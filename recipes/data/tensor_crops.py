"""Photographs of one size that are kept decoded in memory or on a GPU, and cropped there a batch at a time."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.data.draws import AUGMENTATION, generator
from recipes.data.loader import Batch
from recipes.data.normalization import normalize
from recipes.data.tensor_images import flip, on_device
from recipes.data.transforms import ATTEMPTS, RATIOS


class TensorCrops:
    """Batches of random parts of images, resized, and flipped in half of the cases, on the device of the images.

    Parts are drawn as by :class:`recipes.data.transforms.RandomResizedCrop`, for all images of an epoch at once.
    Resizing interpolates linearly between the pixels of the part; it averages nothing, so that parts should be at most
    a little larger than the result. Nothing waits for the device.

    Args:
        images: uint8, shape ``(N, C, S, S)``.
        labels: int64, shape ``(N,)``.
        mean: of each channel, of values in [0, 1].
        deviation: of each channel, of values in [0, 1].
        size: width and height of the result.
        smallest: smallest area of a part, as a share of that of the image.
        seed: of the parts.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        deviation: Sequence[float],
        *,
        size: int,
        smallest: float,
        seed: int,
    ) -> None:
        self._images, self._labels = images, labels
        self._mean, self._deviation = mean, deviation
        self._size, self._smallest, self._seed = size, smallest, seed
        self._drawn = -1

    def __call__(self, epoch: int, indices: list[int]) -> Batch:
        """Return parts of some of the images, as they are drawn in an epoch."""
        self._draw(epoch)
        chosen = on_device(torch.tensor(indices), self._labels.device)
        pixels = crop_and_resize(self._images[chosen], self._boxes[chosen], self._size)
        pixels = flip(pixels, self._flipped[chosen])
        return Batch(normalize(pixels, self._mean, self._deviation), self._labels[chosen])

    def _draw(self, epoch: int) -> None:
        """Draw the parts of an epoch, once."""
        if epoch == self._drawn:
            return
        draw = generator(self._seed, epoch, AUGMENTATION)
        count, device = len(self._labels), self._labels.device
        boxes = random_boxes(draw, count, self._images.shape[-1], self._smallest)
        self._boxes = on_device(torch.from_numpy(boxes), device)
        self._flipped = on_device(torch.from_numpy(draw.integers(2, size=count, dtype=bool)), device)
        self._drawn = epoch


def random_boxes(draw: np.random.Generator, count: int, side: int, smallest: float) -> np.ndarray:
    """Draw parts of square images: left and upper border, width and height in pixels, shape ``(count, 4)``.

    Args:
        draw: where random numbers are from.
        count: number of images.
        side: their width and height.
        smallest: smallest area of a part, as a share of that of the image.
    """
    area = side**2 * draw.uniform(smallest, 1, (ATTEMPTS, count))
    ratio = np.exp(draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1]), (ATTEMPTS, count)))
    sizes = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=-1).round().astype(np.int64)
    fits = ((sizes > 0) & (sizes <= side)).all(axis=-1)
    first = sizes[fits.argmax(axis=0), np.arange(count)]
    chosen = np.where(fits.any(axis=0)[:, None], first, side)  # the whole of a square image has an allowed ratio
    return np.concatenate([draw.integers(side - chosen + 1), chosen], axis=1)


def crop_and_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resize a part of each image, linearly between its pixels and constantly beyond the outermost ones.

    Args:
        images: shape ``(N, C, H, W)``.
        boxes: left and upper border, width and height of the parts, in pixels, shape ``(N, 4)``.
        size: width and height of the result.

    Returns:
        float32, shape ``(N, C, size, size)``.
    """
    height, width = images.shape[2:]
    across = _sources(boxes[:, 0], boxes[:, 2], size) * (2 / width) - 1
    down = _sources(boxes[:, 1], boxes[:, 3], size) * (2 / height) - 1
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=-1)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sources(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where the centers of the pixels of the result lie, shape ``(N, size)``: not beyond those of the part."""
    start, length = start[:, None].float(), length[:, None].float()
    places = start + (torch.arange(size, device=start.device) + 0.5) * (length / size)
    return places.clamp(start + 0.5, start + length - 0.5)
