"""Images in folders, one for each class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.data.encoded import Encoded
from recipes.data.image_source import IndexedSource

SUFFIXES = ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"
"""Of files that are images, in small letters; all others are passed over."""


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes in their order, which is that of the names of their folders.

    Raises:
        ValueError: if there are no folders.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not names:
        found = sorted(entry.name for entry in os.scandir(folder))[:3]
        raise ValueError(
            f"{folder} must hold a folder for each class, got {', '.join(found) or 'nothing'}: sort the images into "
            "folders by their class"
        )
    return names


class ImageFolder(IndexedSource):
    """Images in folders, one for each class.

    Args:
        folder: holds the folders of the classes.
        names: of the classes, in the order of their numbers.

    Raises:
        ValueError: if a folder is not that of a class, or no image is found.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.names = names
        self.folder = folder
        unknown = sorted(set(class_names(folder)) - set(names))
        if unknown:
            raise ValueError(
                f"every folder in {folder} must be that of one of the {len(names)} classes ({', '.join(names[:3])}, "
                f"...), got {', '.join(unknown[:3])}: the training images have no such class"
            )
        found = [(os.fsencode(file), label) for label, name in enumerate(names) for file in _images(folder / name)]
        if not found:
            raise ValueError(f"{folder} must hold images ({', '.join(SUFFIXES)}) in the folders of classes, got none")
        # Arrays, as the reference counts of a million strings would be copied into every worker.
        self._files = np.array([file for file, _ in found])
        self._labels = np.array([label for _, label in found])

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> list[str]:
        """Name of each image file in its order, relative to the folder."""
        return [os.fsdecode(file) for file in self._files]

    def read(self, key: int) -> Encoded:
        """Name the file of an image."""
        path = self.folder / os.fsdecode(self._files[key])
        return Encoded(key, str(path), int(self._labels[key]), str(path))


def _images(folder: Path) -> list[str]:
    """Image files of a class, with the folder's own name."""
    if not folder.is_dir():
        return []
    found = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
    return [f"{folder.name}/{name}" for name in found]
