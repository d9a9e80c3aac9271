"""CIFAR-10: 60 000 photographs of 32x32 pixels in ten classes (Krizhevsky 2009)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.data.batches import shuffled
from recipes.data.decoded import Decoded, decoded_once
from recipes.data.encoded import Encoded, OpenedImage
from recipes.data.image_location import identity_of
from recipes.data.image_table import LABEL, checked, checked_labels, read_hub, read_parquet
from recipes.data.images import ImageModule
from recipes.data.module import Split
from recipes.data.tensor_images import TensorImages

HUB = "uoft-cs/cifar10"
HINT = (
    "Without a connection, download the Parquet files of that data set on another machine, put them into one folder "
    "and name it: `--data.path FOLDER`"
)
COLUMNS = "img", "image"
SIZE = 32
CLASSES = 10
PADDING = 4
MEAN = 0.4914, 0.4822, 0.4465
DEVIATION = 0.2470, 0.2435, 0.2616
"""Of the channels of the training images, red first."""


class Cifar10(ImageModule):
    """CIFAR-10, decoded once and kept in memory: 184 MB in each training process.

    Training images are padded by 4 black pixels, cropped to 32x32 at random and flipped in half of the cases. There is
    no validation part: the test images are the validation images too.

    Args:
        path: folder with ``train-*.parquet`` and ``test-*.parquet`` (themselves, or in a folder ``plain_text``), with
            columns ``img`` or ``image`` and ``label``; or ``None`` for ``uoft-cs/cifar10`` on the Hugging Face hub.
        batch_size: images of a training batch, of all processes together.
        eval_batch_size: images of a validation or test batch, of all processes together.
        drop_last: leave out the images at the end of a training epoch that do not fill a batch.
        device: where images are kept and augmented, such as ``cuda``; ``None`` for the memory of this machine. What
            comes out is the same.
        cache: folder for a decoded copy, which the next process reads; ``None`` for none.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        path: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        drop_last: bool = False,
        device: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, drop_last, device=device)
        self.path = path
        self.cache = None if cache is None else Path(cache)
        self._images: dict[Split, Decoded] = {}

    @property
    def classes(self) -> int:
        """Number of classes: 10."""
        return CLASSES

    def prepare_data(self) -> None:
        """Download the images, in one process of each machine."""
        if self.path is None:
            read_hub(HUB, "train", HINT)

    def setup(self, stage: str) -> None:
        """Read and decode the images that are needed, once.

        Raises:
            FileNotFoundError: if there are no such files.
            ValueError: if they do not hold what they must.
        """
        super().setup(stage)
        for split in ("train", "test") if stage == "fit" else ("test",):
            if split not in self._images:
                images, labels = self._decoded(split)
                self._images[split] = images.to(self.device), labels.to(self.device)

    def _decoded(self, split: str) -> Decoded:
        if self.cache is None:
            return decode(*read(self.path, split))
        identity = HUB if self.path is None else identity_of(files(self.path, split))
        return decoded_once(self.cache, split, identity, lambda: decode(*read(self.path, split)))

    def samples(self, split: Split) -> int:
        """Return the number of images of a part."""
        return len(self._part(split)[1])

    def order(self, split: Split, epoch: int) -> Sequence[int]:
        """Return the numbers of the images of a part: shuffled for training."""
        images = self.samples(split)
        return shuffled(images, self.seed, epoch) if split == "train" else range(images)

    def fetch(self, split: Split) -> TensorImages:
        """Return what selects images of a part, and augments those of training."""
        train = split == "train"
        options: dict[str, Any] = {"padding": PADDING, "flip": True, "seed": self.seed} if train else {}
        return TensorImages(*self._part(split), MEAN, DEVIATION, **options)

    def _part(self, split: Split) -> Decoded:
        return self._images["train" if split == "train" else "test"]


def read(path: str | None, split: str) -> tuple[Any, str]:
    """Return the rows of a part, and where they are from.

    Raises:
        ConnectionError: if the hub cannot be read.
        FileNotFoundError: if the folder does not exist or has no file for the part.
    """
    if path is None:
        return read_hub(HUB, split, HINT), f"{HUB} ({split})"
    found = files(path, split)
    return read_parquet(found), str(found[0])


def files(path: str, split: str) -> list[Path]:
    """Return the files of a part.

    Raises:
        FileNotFoundError: if the folder does not exist or has no file for the part.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"`path` must be a folder with CIFAR-10, got {path!r}, which is none")
    found = sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"plain_text/{split}-*.parquet")])
    if not found:
        names = sorted(entry.name for entry in folder.iterdir())
        raise FileNotFoundError(
            f"expected files {folder / split}-*.parquet, or in its folder `plain_text`; {path!r} holds "
            f"{', '.join(names[:5]) or 'nothing'}"
        )
    return found


def decode(table: Any, where: str) -> Decoded:
    """Return all images of a table, uint8 of shape ``(N, 3, 32, 32)``, and their labels.

    Raises:
        UnreadableImage: if an image cannot be read.
        ValueError: if an image is not of 32x32 pixels, or a label not that of one of ten classes.
    """
    table, column = checked(table, COLUMNS, where)
    names = table.features[LABEL].names
    if len(names) != CLASSES:
        raise ValueError(f"{where} must have {CLASSES} classes, got {len(names)}: {', '.join(names[:3])}, ...")
    labels = checked_labels(table, where)
    images = np.empty((len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    stored = (image for rows in table.iter(1000) for image in rows[column])
    for number, image in enumerate(stored):
        name = f"image {number} of {where}"
        content = image["path"] if image["bytes"] is None else image["bytes"]
        images[number] = _pixels(OpenedImage(Encoded(number, content, int(labels[number]), name)), name)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def _pixels(image: OpenedImage, name: str) -> np.ndarray:
    if image.size != (SIZE, SIZE):
        raise ValueError(f"{name} must have {SIZE}x{SIZE} pixels, got {image.size[0]}x{image.size[1]}")
    return np.asarray(image.pixels())
