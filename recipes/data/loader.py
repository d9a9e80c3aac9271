"""Batches of images for Lightning, loaded in worker processes, that go on where they stopped."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.data.batches import EpochBatches


class Batch(NamedTuple):
    """What is loaded at once.

    Attributes:
        images: float32, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        unreadable: images that were left out.
    """

    images: Tensor
    labels: Tensor
    unreadable: int = 0


Fetch = Callable[[int, list[Any]], Batch]
"""Loads the samples given in the epoch given."""


class Loader:
    """Images and labels, batch by batch.

    It is no ``DataLoader``, because Lightning would replace the sampler of one in a training of several processes. Like
    the streams of text, it has a ``state_dict``, by which Lightning goes on in the middle of an epoch.

    Args:
        batches: which samples make a batch.
        fetch: what loads them; a function of its arguments alone, so that the number of workers changes nothing.
        workers: number of processes that load; 0 for this one.
        current_epoch: returns which epoch it is when one begins; ``None`` for the one that ``batches`` is told.
        pin: put batches where a GPU copies them from without waiting; not for batches that are on one already.
    """

    def __init__(
        self,
        batches: EpochBatches[Any],
        fetch: Fetch,
        workers: int = 0,
        current_epoch: Callable[[], int] | None = None,
        pin: bool = True,
    ) -> None:
        self.batches = batches
        self._current_epoch = current_epoch
        self.unreadable = 0
        """Images left out so far in the epoch, of those that this process takes."""
        self._position = 0
        self._loading: DataLoader[Batch] = DataLoader(
            _Fetching(fetch),
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            persistent_workers=workers > 0,
            pin_memory=pin and torch.cuda.is_available(),
            generator=torch.Generator(),  # the global one would depend on how often an iterator was made
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._current_epoch is not None:
            self.batches.set_epoch(self._current_epoch())
        self.unreadable, self._position = 0, self.batches.start
        try:
            for images, labels, unreadable in self._loading:
                self.batches.start = 0  # of the epoch after this one
                self.unreadable += unreadable
                self._position += 1
                yield images, labels
        finally:
            self._warn()

    def _warn(self) -> None:
        if self.unreadable:
            warnings.warn(
                f"{self.unreadable} images of epoch {self.batches.epoch} could not be read and were left out",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, int]:
        """Return which epoch it is, how many of its batches were handed out, and of how many."""
        return {"epoch": self.batches.epoch, "position": self._position, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration start where another stopped; at the beginning if that had finished.

        Raises:
            ValueError: if the other stopped in the middle of an epoch of another number of batches.
        """
        self.batches.set_epoch(state["epoch"])
        if state["position"] in (0, state["batches"]):
            self.batches.start = 0
        elif state["batches"] == len(self):
            self.batches.start = state["position"]
        else:
            raise ValueError(
                f"the checkpoint was written after batch {state['position']} of {state['batches']} of an epoch, which "
                f"has {len(self)} batches here: use the same data and batch size, or a checkpoint from the end of an "
                "epoch"
            )
        self._position = self.batches.start


class _Fetching(Dataset[Batch]):
    """Turns what a sampler yields into batches, in a worker."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def __getitem__(self, request: tuple[int, list[Any]]) -> Batch:
        return self._fetch(*request)


def _unchanged(batch: Any) -> Any:
    return batch
