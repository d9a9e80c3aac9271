"""From an image of any size to one of the size that a network takes."""

import math
from abc import ABC, abstractmethod

import numpy as np
from PIL import Image

from recipes.data.encoded import OpenedImage

Box = tuple[int, int, int, int]
"""Left, upper, right and lower border in pixels."""

ATTEMPTS = 10
"""Crops that are drawn until one fits into the image."""

RATIOS = 3 / 4, 4 / 3
"""Smallest and largest width of a random crop, relative to its height."""


class Transform(ABC):
    """Makes an RGB image of the right size."""

    @abstractmethod
    def __call__(self, image: OpenedImage, draw: np.random.Generator) -> Image.Image:
        """Return the transformed image, with whatever is random drawn from ``draw``."""


class RandomResizedCrop(Transform):
    """A part of the image of random place, area and shape, resized, and flipped in half of the cases.

    The augmentation of Szegedy et al. 2015 (arXiv:1409.4842), as it is usual in training on ImageNet: the area is
    uniform, the logarithm of the ratio too, and where ten draws do not fit, the largest central part of an allowed
    ratio is taken.

    A large JPEG is decoded at a half, a quarter or an eighth of its size if the part then still has as many pixels as
    the result. The part is the same, and values differ as between two ways to reduce an image, by about one in 255.

    Args:
        size: width and height of the result.
        smallest: smallest area of the part, as a share of that of the image.
    """

    def __init__(self, size: int, smallest: float = 0.08) -> None:
        self.size = size
        self.smallest = smallest

    def __call__(self, image: OpenedImage, draw: np.random.Generator) -> Image.Image:
        """Return a random part, which may be flipped."""
        width, height = image.size
        box = self.box(width, height, draw)
        flip = draw.random() < 0.5
        enlarged = self.size / (box[2] - box[0]), self.size / (box[3] - box[1])
        pixels = image.pixels((math.ceil(width * enlarged[0]), math.ceil(height * enlarged[1])))
        result = self._resized(pixels, box, pixels.width / width, pixels.height / height)
        return result.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else result

    def _resized(self, pixels: Image.Image, box: Box, across: float, down: float) -> Image.Image:
        """Resize a part of an image that was decoded at fractions of its size."""
        size = self.size, self.size
        if across == down == 1:
            return pixels.crop(box).resize(size, Image.Resampling.BILINEAR)
        left, upper, right, lower = box
        reduced = left * across, upper * down, right * across, lower * down
        return pixels.resize(size, Image.Resampling.BILINEAR, box=reduced)

    def box(self, width: int, height: int, draw: np.random.Generator) -> Box:
        """Draw a part of an image."""
        for _ in range(ATTEMPTS):
            area = width * height * draw.uniform(self.smallest, 1)
            ratio = math.exp(draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                left, upper = int(draw.integers(width - across + 1)), int(draw.integers(height - down + 1))
                return left, upper, left + across, upper + down
        ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
        across, down = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, upper = (width - across) // 2, (height - down) // 2
        return left, upper, left + across, upper + down


class CentralCrop(Transform):
    """The center of the image after its shorter side is resized: the usual evaluation.

    Args:
        resize: length of the shorter side.
        size: width and height of the result, at most ``resize``.
    """

    def __init__(self, resize: int, size: int) -> None:
        self.resize = resize
        self.size = size

    def __call__(self, image: OpenedImage, draw: np.random.Generator) -> Image.Image:
        """Return the center; nothing is drawn."""
        resized = resize_shorter_side(image.pixels(), self.resize)
        left, upper = (round((side - self.size) / 2) for side in resized.size)
        return resized.crop((left, upper, left + self.size, upper + self.size))


def resize_shorter_side(image: Image.Image, length: int) -> Image.Image:
    """Resize so that the shorter side gets a length; the ratio stays, but for rounding down."""
    width, height = image.size
    shorter = min(width, height)
    if shorter == length:
        return image
    size = length * width // shorter, length * height // shorter
    return image.resize(size, Image.Resampling.BILINEAR)  # which averages when it reduces
