"""A copy of the images of a data set, decoded and reduced once, that is mapped into memory."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from recipes.data.encoded import Encoded, OpenedImage, UnreadableImage
from recipes.data.image_fetch import Corrupt, allowed
from recipes.data.image_source import ImageSource, IndexedSource
from recipes.data.transforms import resize_shorter_side

HEIGHT = 1
"""Column of the index of a cache: offset, height, width, label. An image that could not be read has height 0."""


class CachedImages(IndexedSource):
    """Images of a cache.

    A cache of a part of a data set is three files: ``<part>.pixels``, all images one behind the other, uint8, each of
    shape ``(H, W, 3)``; ``<part>.index.npy``, where each begins, its shape and its label; and ``<part>.json``, what
    it was made from. An image takes three bytes a pixel: 262 kB if its sides are as 4 to 3 and the shorter one has 256
    pixels, and 336 GB for the 1.28 million training images of ImageNet; a quarter of that at 128 pixels.

    Args:
        folder: of the cache.
        part: name of the part.
        corrupt: what becomes of images that could not be read when the cache was made.

    Raises:
        UnreadableImage: if there are such images and they are not to be left out.
    """

    def __init__(self, folder: Path, part: str, corrupt: Corrupt = "raise") -> None:
        self._files = CacheFiles(folder, part)
        description = json.loads(self._files.description.read_text(encoding="utf-8"))
        self.names = description["names"]
        self._index = np.load(self._files.index)
        self._pixels: np.ndarray | None = None
        unreadable = int((self._index[:, HEIGHT] == 0).sum())
        if unreadable and corrupt == "raise":
            raise UnreadableImage(
                f"{unreadable} of the {len(self)} images of {self._files.pixels} could not be read when the cache was "
                "made, with `--data.corrupt skip`: make another one, which names the first of them, or leave them out "
                "again"
            )

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pixels, of which a copy would be made, to be mapped anew."""
        return self.__dict__ | {"_pixels": None}

    def read(self, key: int) -> Encoded:
        """Return the pixels of an image."""
        if self._pixels is None:
            self._pixels = np.memmap(self._files.pixels, dtype=np.uint8, mode="r")
        offset, height, width, label = (int(value) for value in self._index[key])
        name = f"image {key} of {self._files.pixels}"
        if height == 0:
            return Encoded(key, b"", label, f"{name}, which could not be read when the cache was made,")
        pixels = self._pixels[offset : offset + height * width * 3]
        return Encoded(key, pixels.reshape(height, width, 3), label, name)


class CacheFiles:
    """Files of a cache; those that are being written have other names.

    Args:
        folder: of the cache.
        part: name of the part of the data set.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.pixels = folder / f"{part}.pixels"
        self.index = folder / f"{part}.index.npy"
        self.description = folder / f"{part}.json"
        self.lock = folder / f"{part}.lock"

    def hold(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether the cache is complete and was made with these settings."""
        if not self.description.is_file():
            return False
        description = json.loads(self.description.read_text(encoding="utf-8"))
        sizes = [path.stat().st_size if path.is_file() else -1 for path in (self.pixels, self.index)]
        return bool(description["settings"] == settings and description["bytes"] == sizes)


def ensure_cache(
    folder: Path,
    part: str,
    settings: Mapping[str, Any],
    source: Callable[[], ImageSource],
    *,
    size: int,
    workers: int,
    corrupt: Corrupt,
) -> None:
    """Make the cache of a part of a data set, unless there is one that was made with the same settings.

    The description is written last and removed first: without it there is no cache, whenever the process is killed.
    Of several processes, one makes the cache and the others wait.

    Args:
        folder: of the cache.
        part: name of the part.
        settings: what identifies the images and how they are reduced; whatever JSON can hold.
        source: opens the images to copy.
        size: length of the shorter side of what is kept.
        workers: processes that decode; 0 for none.
        corrupt: what becomes of images that cannot be read.

    Raises:
        UnreadableImage: if an image cannot be read and is not to be skipped.
    """
    files = CacheFiles(folder, part)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(files.lock):
        if files.hold(settings):
            return
        files.description.unlink(missing_ok=True)
        images = source()
        reduced: Any = DataLoader(
            _Reduced(images, size, corrupt),
            sampler=images.order(shuffle=False, seed=0, epoch=0),
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # the global one is for the training
        )
        _write(files, track(reduced, f"caching {part} images in {folder}", total=len(images)))
        sizes = [file.stat().st_size for file in (files.pixels, files.index)]
        description = {"settings": dict(settings), "names": list(images.names), "bytes": sizes}
        with _replaced(files.description) as file:
            file.write(json.dumps(description, indent=1).encode())


def _write(files: CacheFiles, images: Iterable[tuple[int, np.ndarray | None]]) -> None:
    rows, offset = [], 0
    with _replaced(files.pixels) as file:
        for label, pixels in images:
            height, width = (0, 0) if pixels is None else pixels.shape[:2]
            rows.append((offset, height, width, label))
            if pixels is not None:
                offset += file.write(pixels.tobytes())
    with _replaced(files.index) as file:
        np.save(file, np.array(rows, dtype=np.int64))


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that gets its name when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        yield file
    os.replace(partial, path)


class _Reduced(Dataset[tuple[int, "np.ndarray | None"]]):
    """Label and reduced pixels of each image; no pixels of one that is skipped."""

    def __init__(self, source: ImageSource, size: int, corrupt: Corrupt) -> None:
        self._source = source
        self._size = size
        self._corrupt = corrupt

    def __getitem__(self, key: Any) -> tuple[int, np.ndarray | None]:
        encoded = self._source.read(key)
        try:
            pixels = OpenedImage(encoded).pixels()
        except UnreadableImage as error:
            allowed(error, self._corrupt)
            return encoded.label, None
        return encoded.label, np.asarray(resize_shorter_side(pixels, self._size))


def _unchanged(image: Any) -> Any:
    return image
