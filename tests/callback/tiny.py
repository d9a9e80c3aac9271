"""A LightningModule small enough to train in a test, data for it, and a Trainer without side effects."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F


class TinyModel(LightningModule):
    """A CNN with batch norm on 8x8 images; two of its four layers are quantized by default."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def tiny_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip


def examples(count: int = 24, seed: int = 0) -> list[tuple[Tensor, int]]:
    """Noise with a class-dependent mean."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 8, 8, generator=generator) + index % 3, index % 3) for index in range(count)]


class Batches:
    """Batches of 4 examples in a fixed order, which resume where they stopped, also within an epoch."""

    def __init__(self, data: list[tuple[Tensor, int]] | None = None) -> None:
        data = examples() if data is None else data
        images, labels = torch.stack([x for x, _ in data]), torch.tensor([y for _, y in data])
        self.batches = list(zip(images.split(4), labels.split(4), strict=True))
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.position %= len(self.batches)
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def quiet_trainer(root: Path, **kwargs: Any) -> Trainer:
    """A CPU Trainer that prints nothing, logs nowhere and keeps no checkpoints unless told to."""
    defaults: dict[str, Any] = {
        "default_root_dir": root, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1, "deterministic": True,
    }  # fmt: skip
    return Trainer(**defaults | kwargs)


def tiny_model(seed: int = 0) -> TinyModel:
    seed_everything(seed, verbose=False)
    return TinyModel()
