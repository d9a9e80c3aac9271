"""What the text tasks share: streams of tokens, handed to Lightning as batches."""

from abc import ABC, abstractmethod
from typing import Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor

from recipes.data.streams import TokenStream

Split = Literal["train", "validation", "test"]


class TextModule(LightningDataModule, ABC):
    """A text in three parts. Use one of the subclasses.

    Args:
        batch_size: columns of the training text that are read side by side, by all processes together.
        steps: tokens of a column in one batch: how far gradients go back.
        eval_batch_size: columns of the validation and the test text. Each begins with an empty state.

    Raises:
        ValueError: if an argument is not positive.
    """

    vocabulary_size: int
    """Number of different tokens; known after :meth:`setup`."""

    def __init__(self, batch_size: int, steps: int, eval_batch_size: int) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("steps", steps), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        self.batch_size = batch_size
        self.steps = steps
        self.eval_batch_size = eval_batch_size
        self._tokens: dict[Split, Tensor] = {}

    @abstractmethod
    def tokens(self) -> dict[Split, Tensor]:
        """Return the three parts as token numbers, token 0 being the one that precedes each; set the vocabulary."""

    def setup(self, stage: str) -> None:
        """Read the text, once."""
        if not self._tokens:
            self._tokens = self.tokens()

    def train_dataloader(self) -> TokenStream:
        """Batches of the training text."""
        return self._stream("train", self.batch_size)

    def val_dataloader(self) -> TokenStream:
        """Batches of the validation text."""
        return self._stream("validation", self.eval_batch_size)

    def test_dataloader(self) -> TokenStream:
        """Batches of the test text."""
        return self._stream("test", self.eval_batch_size)

    def _stream(self, split: Split, batch_size: int) -> TokenStream:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return TokenStream(self._tokens[split], 0, batch_size, self.steps, rank=rank, world_size=world_size)
