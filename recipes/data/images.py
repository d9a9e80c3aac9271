"""What the image tasks share: batches of normalised images, the same for the same seed."""

import os
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from recipes.data.batches import EpochBatches
from recipes.data.loader import Fetch, Loader
from recipes.data.module import Split


class ImageModule(LightningDataModule, ABC):
    """Labelled images. Use one of the subclasses.

    A batch is ``(images, labels)``: float32 of shape ``(N, C, H, W)``, normalised, and int64 of shape ``(N,)``.

    The order of an epoch and its augmentation follow from the seed, the epoch and the image alone, not from the state
    of any generator, the number of workers or the number of processes. The seed is that of ``seed_everything``, 0
    without it, and is kept in checkpoints. So a resumed training sees what an uninterrupted one does; from Lightning
    2.5 on also in the middle of an epoch, before at its beginning.

    Args:
        batch_size: images of a training batch, of all processes together.
        eval_batch_size: images of a validation or test batch, of all processes together.
        drop_last: leave out the images at the end of a training epoch that do not fill a batch. Which they are changes
            from epoch to epoch. Without it, and in evaluation, every image is taken exactly once.
        workers: processes that load images, for each training process; 0 for none.
        device: where all images are kept decoded and are augmented, such as ``cuda``; ``None`` leaves batches to the
            workers.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, batch_size: int, eval_batch_size: int, drop_last: bool, workers: int = 0, device: str | None = None
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("workers", workers, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.drop_last = drop_last
        self.workers = workers
        self.device = None if device is None else torch.device(device)
        self.seed = 0

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes; known after :meth:`setup`."""

    @abstractmethod
    def samples(self, split: Split) -> int:
        """Return the number of images of a part."""

    @abstractmethod
    def order(self, split: Split, epoch: int) -> Any:
        """Return what identifies each image of a part, in the order of the epoch; the same in every process."""

    @abstractmethod
    def fetch(self, split: Split) -> Fetch:
        """Return what loads images of a part: with augmentation those of training, without all others."""

    def setup(self, stage: str) -> None:
        """Take the seed of this run."""
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # where `seed_everything` puts it, for all processes

    def state_dict(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed of the run that is resumed."""
        self.seed = state_dict["seed"]

    def train_dataloader(self) -> Loader:
        """Augmented batches of the training images."""
        return self._loader("train", self.batch_size, drop_last=self.drop_last)

    def val_dataloader(self) -> Loader:
        """Batches of the validation images."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> Loader:
        """Batches of the test images."""
        return self._loader("test", self.eval_batch_size)

    def _loader(self, split: Split, batch_size: int, *, drop_last: bool = False) -> Loader:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        batches: EpochBatches[Any] = EpochBatches(
            lambda epoch: self.order(split, epoch),
            self.samples(split),
            batch_size,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        current_epoch = None if self.trainer is None else self._current_epoch
        kept = self.device is not None
        return Loader(batches, self.fetch(split), 0 if kept else self.workers, current_epoch, pin=not kept)

    def _current_epoch(self) -> int:
        assert self.trainer is not None
        # The batches to overfit are to be the same in every epoch.
        return 0 if self.trainer.overfit_batches else self.trainer.current_epoch
