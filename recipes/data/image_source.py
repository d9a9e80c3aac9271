"""Where encoded images come from."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from recipes.data.batches import shuffled
from recipes.data.encoded import Encoded


class ImageSource(ABC):
    """The labelled images of a part of a data set.

    Attributes:
        names: of the classes, in the order of their numbers.
    """

    names: Sequence[str]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def order(self, *, shuffle: bool, seed: int, epoch: int) -> Iterable[Any]:
        """Return a key of each image, in the order of an epoch; called in the training process."""

    @abstractmethod
    def read(self, key: Any) -> Encoded:
        """Return the image of a key; called in a worker."""


class IndexedSource(ImageSource):
    """Images that can be read in any order; their keys are their positions."""

    def order(self, *, shuffle: bool, seed: int, epoch: int) -> Iterable[int]:
        """Return all positions."""
        return shuffled(len(self), seed, epoch) if shuffle else range(len(self))


def require_labels(lowest: int, highest: int, names: Sequence[str], where: str) -> None:
    """Refuse labels that are not the number of a class.

    Raises:
        ValueError: if there are such labels.
    """
    if lowest < 0 or highest >= len(names):
        raise ValueError(
            f"labels of {where} must be between 0 and {len(names) - 1}, the numbers of its {len(names)} classes, got "
            f"{lowest if lowest < 0 else highest}; a label of -1 stands for one that is not published, as in the test "
            "part of ImageNet"
        )
