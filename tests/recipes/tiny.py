"""Texts, models and Trainers small enough to train in a test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from recipes.data.markov import MarkovText
from recipes.models.classifier import ImageClassifier
from recipes.models.language import LanguageModel

SYMBOLS = 12


def write_corpus(folder: Path, parts: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Write text files as those of the Penn Treebank: a space at both ends of a line."""
    folder.mkdir(exist_ok=True)
    for part, sentences in parts.items():
        lines = [f" {' '.join(words)} \n" for words in sentences]
        (folder / f"ptb.{part}.txt").write_text("".join(lines))


def transcribed(folder: Path) -> dict[str, list[str]]:
    """Words of a corpus, sentence ends included, read as plainly as can be."""
    texts = {}
    for part in ("train", "valid", "test"):
        words: list[str] = []
        for line in (folder / f"ptb.{part}.txt").read_text().splitlines():
            words += [*line.split(), "<eos>"]
        texts[part] = words
    return texts


def tokens(count: int, seed: int = 0) -> Tensor:
    """Random tokens."""
    return torch.randint(SYMBOLS, (count,), generator=torch.Generator().manual_seed(seed))


def tiny_model(seed: int = 0, **options: Any) -> LanguageModel:
    """A model of 8 units for a Markov text."""
    seed_everything(seed, verbose=False)
    defaults = {"vocabulary_size": SYMBOLS, "units": 8, "dropout": 0.0, "learning_rate": 1.0}
    return LanguageModel(**defaults | options)


def tiny_classifier(seed: int = 0, **options: Any) -> ImageClassifier:
    """A classifier of images of 8x8 pixels."""
    seed_everything(seed, verbose=False)
    defaults = {"network": "digits_cnn", "classes": 10, "learning_rate": 0.05}
    return ImageClassifier(**defaults | options)


class RandomImages(LightningDataModule):
    """Images of 8x8 pixels without meaning, in the same order in every epoch.

    Args:
        size: how many images each part has.
        batch_size: images of a batch; the last one may have fewer.
        classes: what labels are drawn from.
    """

    def __init__(self, size: int = 42, batch_size: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.size, self.batch_size, self.classes = size, batch_size, classes

    def images(self, part: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a part."""
        generator = torch.Generator().manual_seed(part)
        shape = (self.size, 1, 8, 8)
        return torch.randn(shape, generator=generator), torch.randint(self.classes, shape[:1], generator=generator)

    def loader(self, part: int) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*self.images(part)), self.batch_size)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.loader(0)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.loader(1)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.loader(2)


def quiet_trainer(root: Path, **options: Any) -> Trainer:
    """A CPU Trainer that prints nothing, logs nowhere and keeps no checkpoints unless told to."""
    defaults: dict[str, Any] = {
        "default_root_dir": root, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(**defaults | options)


def short_text(steps: int = 20) -> MarkovText:
    """A Markov text for few and small batches."""
    return MarkovText(batch_size=4, steps=steps, eval_batch_size=3)


class Losses(Callback):
    """Keeps every training loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(outputs["loss"].item())
