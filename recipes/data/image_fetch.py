"""Decodes, augments and stacks the images of a batch, in a worker."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from recipes.data.draws import AUGMENTATION, generator
from recipes.data.encoded import OpenedImage, UnreadableImage
from recipes.data.image_source import ImageSource
from recipes.data.loader import Batch
from recipes.data.normalization import normalize
from recipes.data.transforms import Transform

Corrupt = Literal["raise", "skip"]
"""What becomes of an image that cannot be read: it ends the run, or is left out and counted."""


def allowed(error: UnreadableImage, corrupt: Corrupt) -> UnreadableImage:
    """Return an error that is to be passed over, and raise any other.

    Raises:
        UnreadableImage: if images that cannot be read are not to be skipped.
    """
    if corrupt == "skip":
        return error
    raise UnreadableImage(
        f"{error}. Replace it, or leave out such images and count them: `--data.corrupt skip`"
    ) from error


class ImageFetch:
    """Batches of images that are decoded when they are needed.

    Args:
        source: where images are from.
        transform: gives all of them one size.
        mean: of each channel, of values in [0, 1].
        deviation: of each channel, of values in [0, 1].
        corrupt: what becomes of images that cannot be read.
        seed: of the transform. What it draws for an image follows from seed, epoch and position of the image.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        mean: Sequence[float],
        deviation: Sequence[float],
        *,
        corrupt: Corrupt = "raise",
        seed: int = 0,
    ) -> None:
        self._source = source
        self._transform = transform
        self._mean, self._deviation = mean, deviation
        self._corrupt = corrupt
        self._seed = seed

    def __call__(self, epoch: int, keys: list[Any]) -> Batch:
        """Return some of the images, as they are transformed in an epoch.

        Raises:
            UnreadableImage: if an image cannot be read and is not to be left out, or if none of the batch can be read.
        """
        images, labels = [], []
        unreadable: UnreadableImage | None = None
        for key in keys:
            encoded = self._source.read(key)
            draw = generator(self._seed, epoch, AUGMENTATION, encoded.position)
            try:
                image = self._transform(OpenedImage(encoded), draw)
            except UnreadableImage as error:
                unreadable = allowed(error, self._corrupt)
                continue
            images.append(np.asarray(image))
            labels.append(encoded.label)
        if not images:
            raise UnreadableImage(f"none of the {len(keys)} images of a batch can be read; the last: {unreadable}")
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Batch(
            normalize(pixels, self._mean, self._deviation), torch.tensor(labels), unreadable=len(keys) - len(images)
        )
