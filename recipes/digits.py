"""Handwritten digits: real data that ships inside scikit-learn, and small networks to train on it.

1797 images of 8x8 pixels (Alpaydin & Kaynak 1998, UCI), so that a training run takes seconds and needs no download.
"""

from itertools import pairwise
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

Network = Literal["cnn_bn", "cnn", "mlp", "cnn_strided"]
CLASSES = 10


def digits(train_size: int = 1197) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: images in [0, 1] of shape (1, 8, 8) and labels; the same split at every call."""
    from sklearn.datasets import load_digits  # not at the top: networks do without it

    source = load_digits()
    images = torch.tensor(source.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(source.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:train_size], order[train_size:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def batches(dataset: TensorDataset, batch_size: int, seed: int | None = None) -> DataLoader[tuple[Tensor, ...]]:
    """Batches in the order given by ``seed``, or in the order of the dataset without one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=seed is not None, generator=generator, drop_last=seed is not None)


def network(name: Network, classes: int = CLASSES) -> nn.Sequential:
    """Build a network of four quantizable layers.

    A CNN with batch norm, the same without, an MLP, or a CNN with batch norm and strides for pooling: the fastest.
    """
    if name == "mlp":
        sizes = [64, 128, 128, 128]
        hidden = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
        return nn.Sequential(nn.Flatten(), *[layer for pair in hidden for layer in pair], nn.Linear(128, classes))
    norm = name != "cnn"

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not norm)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [conv, nn.ReLU()]

    if name == "cnn_strided":
        return nn.Sequential(
            *block(1, 16, stride=2), *block(16, 32), *block(32, 32, stride=2), nn.Flatten(), nn.Linear(128, classes)
        )
    return nn.Sequential(
        *block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


class DigitsClassifier(LightningModule):
    """A network for digits, trained by Adam on a cosine schedule over all steps of the Trainer.

    Args:
        name: which network to build.
        learning_rate: largest learning rate of the schedule.
    """

    def __init__(self, name: Network = "cnn_bn", learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = network(name)
        self.learning_rate = learning_rate
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (N, 10)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the test accuracy."""
        self.accuracy(self(batch[0]), batch[1])
        self.log("test_accuracy", self.accuracy)

    def configure_optimizers(self) -> dict[str, object]:
        """Adam, with the learning rate following a cosine to zero."""
        optimizer = torch.optim.Adam(self.parameters(), self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
