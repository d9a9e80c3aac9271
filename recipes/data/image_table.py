"""Images in Parquet files and on the Hugging Face hub, by the package `datasets` where it is installed."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.draws import ORDER, generator
from recipes.data.encoded import Encoded
from recipes.data.image_source import ImageSource, IndexedSource, require_labels
from recipes.data.parquet_rows import ParquetRows

LABEL = "label"


def read_parquet(files: Sequence[Path], *, streaming: bool = False) -> Any:
    """Return the rows of Parquet files, as `datasets` has them.

    Without that package, all rows are read into memory, and nothing is streamed.

    Raises:
        ValueError: if a file is not in that format.
    """
    try:
        from datasets import load_dataset  # not at the top: folders of images do not need the package
    except ModuleNotFoundError:
        if streaming:
            raise
        load_dataset = None
    try:
        if load_dataset is None:
            return ParquetRows(files)
        return load_dataset("parquet", data_files=[str(file) for file in files], split="train", streaming=streaming)
    except Exception as error:  # of three packages; none of them names the file
        raise ValueError(f"{files[0]} must be a Parquet file that holds images: {error}") from error


def read_hub(name: str, split: str, hint: str, *, streaming: bool = False) -> Any:
    """Return the rows of a data set on the hub, downloaded before or now, or as they come.

    Raises:
        ConnectionError: if the hub cannot be read.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, split=split, streaming=streaming)
    except Exception as error:  # each kind of failure has an exception of its own, from three packages
        raise ConnectionError(f"{name} could not be read from the Hugging Face hub: {error}. {hint}") from error


def count_rows(files: Sequence[Path]) -> int:
    """Return the number of rows of Parquet files, without reading them."""
    from pyarrow import parquet

    return sum(parquet.read_metadata(file).num_rows for file in files)


def checked(table: Any, columns: Sequence[str], where: str) -> tuple[Any, str]:
    """Return rows whose images are not decoded, and the name of their column.

    Args:
        table: of `datasets`, or what stands in for one.
        columns: names that the column of images may have.
        where: what a message calls the table.

    Raises:
        ValueError: if a column is not there, or is not what it must be.
    """
    found = table.column_names or []
    column = next((name for name in columns if name in found), None)
    if column is None or LABEL not in found:
        raise ValueError(f"{where} must have the columns {' or '.join(map(repr, columns))} and {LABEL!r}, got {found}")
    if not _is_a(table.features[LABEL], "ClassLabel"):
        raise ValueError(
            f"the column {LABEL!r} of {where} must be a ClassLabel, which names the classes, got "
            f"{table.features[LABEL]}: write it with `table.cast_column({LABEL!r}, ClassLabel(names=[...]))`"
        )
    if not _is_a(table.features[column], "Image"):
        raise ValueError(
            f"the column {column!r} of {where} must be an Image, got {table.features[column]}: write it with "
            f"`table.cast_column({column!r}, Image())`"
        )
    if isinstance(table, ParquetRows):
        return table, column
    from datasets import Image

    return table.cast_column(column, Image(decode=False)), column


def _is_a(feature: Any, name: str) -> bool:
    """Whether `datasets`, or what stands in for it, describes a column as of this class."""
    return type(feature).__name__ == name


def checked_labels(table: Any, where: str) -> np.ndarray:
    """Return the labels of a table, int64.

    Raises:
        ValueError: if there are none, or one is not that of a class.
    """
    labels = np.array(table[LABEL][:], dtype=np.int64)
    if not len(labels):
        raise ValueError(f"{where} must hold images, it is empty")
    require_labels(int(labels.min()), int(labels.max()), table.features[LABEL].names, where)
    return labels


class ImageTable(IndexedSource):
    """Images in a table on this machine.

    Args:
        table: of `datasets`.
        where: what a message calls the table.

    Raises:
        ValueError: if the columns ``image`` and ``label`` are not there, or a label is not that of a class.
    """

    def __init__(self, table: Any, where: str) -> None:
        self._table, _ = checked(table, ("image",), where)
        self._where = where
        self.names: Sequence[str] = self._table.features[LABEL].names
        checked_labels(self._table, where)

    def __len__(self) -> int:
        return len(self._table)

    def read(self, key: int) -> Encoded:
        """Return a row."""
        return _encoded(key, self._table[key], self._where)


class ImageStream(ImageSource):
    """Images of a table that are read from beginning to end, from the hub without keeping them.

    The training process reads the encoded images, and hands them to its workers to decode. When it shuffles, it does so
    by files and, within some thousand images, by image. Each of several training processes reads the whole stream and
    leaves to the others what is theirs: for many of them, a table or a cache on the machine is faster.

    Args:
        table: of `datasets`, streamed.
        images: number of rows.
        where: what a message calls the table.
        buffer: images among which the next one is chosen.

    Raises:
        ValueError: if the columns ``image`` and ``label`` are not there.
    """

    def __init__(self, table: Any, images: int, where: str, buffer: int) -> None:
        self._table, _ = checked(table, ("image",), where)
        self._images = images
        self._where = where
        self._buffer = buffer
        self.names: Sequence[str] = self._table.features[LABEL].names

    def __len__(self) -> int:
        return self._images

    def order(self, *, shuffle: bool, seed: int, epoch: int) -> Iterable[Encoded]:
        """Return the images themselves, one after the other.

        Raises:
            ValueError: if a label is not that of a class.
        """
        table = self._table
        if shuffle:
            # Its own `set_epoch` changes less than the whole order.
            mixed = int(generator(seed, epoch, ORDER).integers(2**32))
            table = table.shuffle(seed=mixed, buffer_size=self._buffer)
        return self._checked(table)

    def read(self, key: Encoded) -> Encoded:
        """Return the image, which is its own key."""
        return key

    def _checked(self, table: Any) -> Iterator[Encoded]:
        for position, row in enumerate(table):
            require_labels(row[LABEL], row[LABEL], self.names, f"{self._where}, image {position} of the stream,")
            yield _encoded(position, row, self._where)


def _encoded(position: int, row: dict[str, Any], where: str) -> Encoded:
    stored = row["image"]
    name = f"image {position} of {where}"
    if stored["path"]:
        name += f" ({stored['path']})"
    content = stored["bytes"]
    return Encoded(position, stored["path"] if content is None else content, row[LABEL], name)
