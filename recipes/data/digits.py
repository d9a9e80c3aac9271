"""Handwritten digits of 8x8 pixels, which need no download."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.data.batches import shuffled
from recipes.data.images import ImageModule
from recipes.data.loader import Batch
from recipes.data.module import Split
from recipes.digits import CLASSES, digits


class Digits(ImageModule):
    """The digits of scikit-learn: 1197 images to train on and 600 to test, of one channel, in [0, 1].

    The split is that of the quickstart. Nothing is augmented, and the test images are the validation images too.

    Args:
        batch_size: images of a training batch, of all processes together.
        eval_batch_size: images of a validation or test batch, of all processes together.
        drop_last: leave out the images at the end of a training epoch that do not fill a batch.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, batch_size: int = 64, eval_batch_size: int = 600, drop_last: bool = False) -> None:
        super().__init__(batch_size, eval_batch_size, drop_last)
        train, test = digits()
        self._parts = {"train": train.tensors, "validation": test.tensors, "test": test.tensors}

    @property
    def classes(self) -> int:
        """Number of classes: 10."""
        return CLASSES

    def samples(self, split: Split) -> int:
        """Return the number of images of a part."""
        return len(self._parts[split][1])

    def order(self, split: Split, epoch: int) -> Sequence[int]:
        """Return the numbers of the images of a part: shuffled for training."""
        images = self.samples(split)
        return shuffled(images, self.seed, epoch) if split == "train" else range(images)

    def fetch(self, split: Split) -> "Selection":
        """Return what selects images of a part."""
        images, labels = self._parts[split]
        return Selection(images, labels)


class Selection:
    """Batches of images that are ready.

    Args:
        images: float32, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images = images
        self._labels = labels

    def __call__(self, epoch: int, indices: list[int]) -> Batch:
        """Return some of the images."""
        chosen = torch.tensor(indices)
        return Batch(self._images[chosen], self._labels[chosen])
