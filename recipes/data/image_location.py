"""In which form the images are that a path names."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.data.image_folder import ImageFolder, class_names
from recipes.data.image_source import ImageSource
from recipes.data.image_table import ImageStream, ImageTable, count_rows, read_hub, read_parquet
from recipes.data.module import Split

HUB = "ILSVRC/imagenet-1k"
HINT = (
    "It is gated: accept its terms on its page, then `huggingface-cli login`. Without a connection, name a folder with "
    "`train-*.parquet` and `validation-*.parquet`, or with folders `train` and `val` of images: `--data.path FOLDER`"
)
FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation")}
"""Names of the folder of a part of the images."""


class Location(ABC):
    """Images in one of the forms."""

    @abstractmethod
    def has(self, split: Split) -> bool:
        """Tell whether a part is there."""

    @abstractmethod
    def open(self, split: Split) -> ImageSource:
        """Open a part, and check it."""

    @abstractmethod
    def stream(self, split: Split, buffer: int) -> ImageSource:
        """Open a part to be read from beginning to end, and shuffled in a buffer."""

    @abstractmethod
    def identity(self, split: Split) -> dict[str, Any]:
        """Return what tells a part from another one, without reading it."""


class Hub(Location):
    """The data set on the Hugging Face hub."""

    def has(self, split: Split) -> bool:
        """It has both parts."""
        return split in FOLDERS

    def open(self, split: Split) -> ImageSource:
        """Download a part, if that was not done before."""
        return ImageTable(read_hub(HUB, split, HINT), f"{HUB} ({split})")

    def stream(self, split: Split, buffer: int) -> ImageSource:
        """Begin to read a part, of which nothing is kept."""
        table = read_hub(HUB, split, HINT, streaming=True)
        return ImageStream(table, table.info.splits[split].num_examples, f"{HUB} ({split})", buffer)

    def identity(self, split: Split) -> dict[str, Any]:
        """Name the data set."""
        return {"hub": HUB, "split": split}


class ParquetFolder(Location):
    """Parquet files ``<split>-*.parquet`` with columns ``image`` and ``label``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self, split: Split) -> list[Path]:
        """Return the files of a part in their order."""
        return sorted(self.folder.glob(f"{split}-*.parquet"))

    def has(self, split: Split) -> bool:
        """Tell whether there are files of a part."""
        return bool(self.files(split))

    def open(self, split: Split) -> ImageSource:
        """Open a part; `datasets` makes an Arrow file of it, in its own cache."""
        return ImageTable(read_parquet(self.files(split)), self._name(split))

    def stream(self, split: Split, buffer: int) -> ImageSource:
        """Open a part as it is."""
        files = self.files(split)
        table = read_parquet(files, streaming=True)
        return ImageStream(table, count_rows(files), self._name(split), buffer)

    def identity(self, split: Split) -> dict[str, Any]:
        """Digest names, sizes and times of the files."""
        return {"parquet": identity_of(self.files(split)), "split": split}

    def _name(self, split: Split) -> str:
        return str(self.folder / f"{split}-*.parquet")


class ClassFolders(Location):
    """Folders ``train/<class>`` and ``val/<class>`` of images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, split: Split) -> bool:
        """Tell whether there is a folder of a part."""
        return any((self.folder / name).is_dir() for name in FOLDERS.get(split, ()))

    def open(self, split: Split) -> ImageFolder:
        """List the images of a part; its classes are those of the training images, where they are there."""
        own = next(self.folder / name for name in FOLDERS[split] if (self.folder / name).is_dir())
        train = self.folder / "train"
        return ImageFolder(own, class_names(train if train.is_dir() else own))

    def stream(self, split: Split, buffer: int) -> ImageSource:
        """Refuse to.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"`streaming` is for the hub and for Parquet files, of which `datasets` would make a copy to read them in "
            f"any order; {self.folder} holds image files, which are read where they are: leave it out"
        )

    def identity(self, split: Split) -> dict[str, Any]:
        """Digest the names of the files. An image that was replaced by another of the same name goes unnoticed."""
        images = self.open(split)
        return {"folder": _digest([list(images.names), images.files]), "split": split}


def locate(path: str | None) -> Location:
    """Return in which form the images are.

    Args:
        path: folder with Parquet files (themselves, or in a folder ``data``) or with folders of classes; ``None`` for
            the hub.

    Raises:
        FileNotFoundError: if the folder is not there, or holds neither.
    """
    if path is None:
        return Hub()
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"`path` must be a folder of images, got {path!r}, which is none")
    forms = ParquetFolder(folder), ParquetFolder(folder / "data"), ClassFolders(folder)
    for form in forms:
        if any(form.has(split) for split in FOLDERS):
            return form
    found = sorted(entry.name for entry in folder.iterdir())
    raise FileNotFoundError(
        f"`path` must be a folder with `train-*.parquet` or `validation-*.parquet` (or with a folder `data` of them), "
        f"or with folders `train` or `val` that hold a folder for each class; {path!r} holds "
        f"{', '.join(found[:5]) or 'nothing'}{', ...' if len(found) > 5 else ''}"
    )


def identity_of(files: Sequence[Path]) -> str:
    """Digest names, sizes and times of files."""
    return _digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _digest(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
