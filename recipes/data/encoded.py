"""Images as they are stored, and what becomes of those that cannot be read."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image


class UnreadableImage(ValueError):
    """An image is corrupt, truncated, of an unknown format, or not there."""


class Encoded(NamedTuple):
    """One image of a data set, not decoded yet.

    Attributes:
        position: its number in the data set; in a stream, its place in the epoch.
        image: a file's content, a file's name, or pixels: uint8, shape ``(H, W, 3)``.
        label: number of its class.
        name: what a message calls it.
    """

    position: int
    image: bytes | str | np.ndarray
    label: int
    name: str


class OpenedImage:
    """An image whose size is known and whose pixels are decoded when they are asked for.

    Args:
        encoded: the image.

    Raises:
        UnreadableImage: if not even its size can be read.
    """

    def __init__(self, encoded: Encoded) -> None:
        self._name = encoded.name
        stored = encoded.image
        try:
            if isinstance(stored, np.ndarray):
                self._image = Image.fromarray(stored)
            else:
                self._image = Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored)
        except Exception as error:  # Pillow raises what its decoders happen to
            raise self._unreadable(error) from error

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._image.size

    def pixels(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Return the decoded image in RGB, whatever mode it is stored in; transparency is ignored.

        Args:
            at_least: a size that is enough. A JPEG is then decoded at a half, a quarter or an eighth of its own size if
                that is as large, which takes a fraction of the time.

        Raises:
            UnreadableImage: if it is corrupt or truncated.
        """
        try:
            if at_least is not None:
                self._image.draft(None, at_least)
            self._image.load()
            return self._image if self._image.mode == "RGB" else _converted(self._image)
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UnreadableImage:
        return UnreadableImage(f"{self._name} cannot be read: {error}")


def _converted(image: Image.Image) -> Image.Image:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
        return image.convert("RGB")
