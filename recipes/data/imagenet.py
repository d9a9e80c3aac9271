"""ImageNet, and any other labelled photographs in one of its forms."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.data.decoded import Decoded
from recipes.data.encoded import OpenedImage, UnreadableImage
from recipes.data.image_cache import CachedImages, ensure_cache
from recipes.data.image_fetch import Corrupt, ImageFetch, allowed
from recipes.data.image_location import FOLDERS, locate
from recipes.data.image_source import ImageSource
from recipes.data.images import ImageModule
from recipes.data.loader import Fetch
from recipes.data.module import Split
from recipes.data.tensor_crops import TensorCrops
from recipes.data.tensor_images import TensorImages
from recipes.data.transforms import CentralCrop, RandomResizedCrop, Transform

MEAN = 0.485, 0.456, 0.406
DEVIATION = 0.229, 0.224, 0.225
"""Of the channels of ImageNet, red first; those that published networks were trained with."""


class ImageNet(ImageModule):
    """Photographs of any size in classes: ImageNet (Russakovsky et al. 2015), or what has its form.

    Training images are random parts, resized and flipped; evaluation takes the center. Images of one channel, with a
    palette, with transparency or for print become RGB. The labels of the test part are not published: the validation
    images are the test images too.

    Args:
        path: folder with ``train-*.parquet`` and ``validation-*.parquet`` (themselves, or in a folder ``data``), with
            columns ``image`` and ``label``; or with image files ``train/<class>/*`` and ``val/<class>/*``, classes in
            the order of their names; or ``None`` for ``ILSVRC/imagenet-1k`` on the Hugging Face hub.
        streaming: read the hub or the Parquet files from beginning to end, without a copy on this machine. Images are
            then shuffled within some thousand, and each training process reads all of them.
        batch_size: images of a training batch, of all processes together.
        eval_batch_size: images of a validation batch, of all processes together.
        drop_last: leave out the images at the end of a training epoch that do not fill a batch.
        workers: processes that decode images, for each training process; 0 for none.
        crop_size: width and height of what the network sees.
        resize_size: length of the shorter side before the center is taken in evaluation.
        smallest_crop: smallest part of a training image, as a share of its area.
        corrupt: ``"raise"`` ends the run at an image that cannot be read; ``"skip"`` leaves such images out, and says
            at the end of an epoch how many they were.
        cache: folder for a decoded and reduced copy of the images, made before the first epoch; ``None`` for none.
            See :class:`~recipes.data.image_cache.CachedImages` for its size.
        cache_size: length of the shorter side of cached images. With that of ``resize_size``, evaluation is the same
            as without a cache; training crops from less detail.
        shuffle_buffer: images among which the next one of a stream is chosen.
        device: where the central squares of all images are kept decoded, with sides of ``resize_size``, and are
            cropped, such as ``cuda``; ``None`` decodes images when they are needed. It is for some ten thousand images:
            one takes 49 kB at 128 pixels. With a ``cache``, they are decoded once for all runs.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        path: str | None = None,
        streaming: bool = False,
        batch_size: int = 256,
        eval_batch_size: int = 256,
        drop_last: bool = False,
        workers: int = 4,
        crop_size: int = 224,
        resize_size: int = 256,
        smallest_crop: float = 0.08,
        corrupt: Corrupt = "raise",
        cache: str | None = None,
        cache_size: int = 256,
        shuffle_buffer: int = 4096,
        device: str | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, drop_last, workers, device)
        for name, value in (("crop_size", crop_size), ("cache_size", cache_size), ("shuffle_buffer", shuffle_buffer)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if resize_size < crop_size:
            raise ValueError(f"`resize_size` must be at least `crop_size`, {crop_size}, got {resize_size}")
        if not 0 < smallest_crop <= 1:
            raise ValueError(f"`smallest_crop` must be more than 0 and at most 1, got {smallest_crop}")
        if corrupt not in ("raise", "skip"):
            raise ValueError(f"`corrupt` must be 'raise' or 'skip', got {corrupt!r}")
        if device is not None and streaming:
            raise ValueError("`streaming` keeps no images, and `device` says where to keep them: leave out one of both")
        if device is not None and corrupt == "skip":
            raise ValueError("`corrupt` must be 'raise' where `device` keeps all images, got 'skip'")
        self.path = path
        self.streaming = streaming
        self.crop_size = crop_size
        self.resize_size = resize_size
        self.smallest_crop = smallest_crop
        self.corrupt = corrupt
        self.cache = None if cache is None else Path(cache)
        self.cache_size = cache_size
        self.shuffle_buffer = shuffle_buffer
        self._sources: dict[Split, ImageSource] = {}
        self._kept: dict[Split, Decoded] = {}

    @property
    def classes(self) -> int:
        """Number of classes; known after :meth:`setup`."""
        if not self._sources:
            raise RuntimeError("the number of classes is known after `setup`")
        return len(next(iter(self._sources.values())).names)

    def prepare_data(self) -> None:
        """Download and cache what is asked for, in one process of each machine."""
        location = locate(self.path)
        for split in FOLDERS:
            if location.has(split):
                self._open(split)

    def setup(self, stage: str) -> None:
        """Open the images, once.

        Raises:
            FileNotFoundError: if a part that is needed is not there.
            ValueError: if it is not what it must be.
        """
        super().setup(stage)
        location = locate(self.path)
        for split in self._needed(stage):
            if split in self._sources:
                continue
            if not location.has(split):
                spared = stage == "fit" and split == "validation"
                raise FileNotFoundError(
                    f"the {split} images are not in {self.path}, which holds "
                    f"{', '.join(other for other in FOLDERS if location.has(other))} images"
                    + (": `--trainer.limit_val_batches 0` trains without" if spared else "")
                )
            self._sources[split] = self._open(split)
        names = [list(source.names) for source in self._sources.values()]
        if names[1:] and names[0] != names[1]:
            raise ValueError(
                f"training and validation images of {self.path} must have the same classes in the same order, got "
                f"{len(names[0])} ({', '.join(names[0][:3])}, ...) and {len(names[1])} ({', '.join(names[1][:3])}, ...)"
            )

    def _needed(self, stage: str) -> list[Split]:
        if stage != "fit":
            return ["validation"]
        validated = self.trainer is None or self.trainer.limit_val_batches != 0
        return ["train", "validation"] if validated else ["train"]

    def _open(self, split: Split) -> ImageSource:
        if self.cache is None:
            return self._uncached(split)
        settings = {**locate(self.path).identity(split), "cache_size": self.cache_size}
        ensure_cache(
            self.cache,
            split,
            settings,
            partial(self._uncached, split),
            size=self.cache_size,
            workers=self.workers,
            corrupt=self.corrupt,
        )
        return CachedImages(self.cache, split, self.corrupt)

    def _uncached(self, split: Split) -> ImageSource:
        location = locate(self.path)
        return location.stream(split, self.shuffle_buffer) if self.streaming else location.open(split)

    def samples(self, split: Split) -> int:
        """Return the number of images of a part."""
        return len(self._source(split))

    def order(self, split: Split, epoch: int) -> Any:
        """Return the keys of the images of a part: shuffled for training."""
        return self._source(split).order(shuffle=split == "train", seed=self.seed, epoch=epoch)

    def fetch(self, split: Split) -> Fetch:
        """Return what loads images of a part, and augments those of training."""
        return self._decoding(split) if self.device is None else self._keeping(split)

    def _decoding(self, split: Split) -> ImageFetch:
        transform: Transform = CentralCrop(self.resize_size, self.crop_size)
        if split == "train":
            transform = RandomResizedCrop(self.crop_size, self.smallest_crop)
        return ImageFetch(self._source(split), transform, MEAN, DEVIATION, corrupt=self.corrupt, seed=self.seed)

    def _keeping(self, split: Split) -> TensorCrops | TensorImages:
        part: Split = "train" if split == "train" else "validation"
        if part not in self._kept:
            images, labels = squares(self._source(part), self.resize_size)
            self._kept[part] = images.to(self.device), labels.to(self.device)
        images, labels = self._kept[part]
        if part == "train":
            size, smallest = self.crop_size, self.smallest_crop
            return TensorCrops(images, labels, MEAN, DEVIATION, size=size, smallest=smallest, seed=self.seed)
        start = round((self.resize_size - self.crop_size) / 2)
        center = slice(start, start + self.crop_size)
        return TensorImages(images[..., center, center], labels, MEAN, DEVIATION)

    def _source(self, split: Split) -> ImageSource:
        return self._sources["validation" if split == "test" else split]


def squares(source: ImageSource, side: int) -> Decoded:
    """Decode the central squares of all images.

    Raises:
        UnreadableImage: if an image cannot be read.
    """
    images = np.empty((len(source), side, side, 3), dtype=np.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)
    central, unused = CentralCrop(side, side), np.random.default_rng(0)
    for number in range(len(source)):
        encoded = source.read(number)
        try:
            images[number] = np.asarray(central(OpenedImage(encoded), unused))
        except UnreadableImage as error:
            raise allowed(error, "raise") from error
        labels[number] = encoded.label
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels
