"""Networks whose training steps are timed, with a batch of random data for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


def residual_stages(widths: list[int], blocks: int) -> list[nn.Module]:
    """Stages of residual blocks; each but the first halves the image."""
    layers: list[nn.Module] = []
    for stage, width in enumerate(widths):
        for block in range(blocks):
            inputs = widths[max(stage - 1, 0)] if block == 0 else width
            layers.append(ResidualBlock(inputs, width, stride=2 if stage and block == 0 else 1))
    return layers


def resnet18() -> nn.Module:
    """ResNet-18 for 224x224 images of 1000 classes: 11.7 million parameters."""
    stem = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*stem, *residual_stages([64, 128, 256, 512], blocks=2), *ends)


def resnet20() -> nn.Module:
    """ResNet-20 for 32x32 images of 10 classes: 0.27 million parameters."""
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, *residual_stages([16, 32, 64], blocks=3), *ends)


def mlp() -> nn.Module:
    """Multilayer perceptron for 28x28 images: small layers, so that what a call costs by itself shows."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


class LanguageModel(nn.Module):
    """One-layer LSTM of Penn Treebank size: 10 000 words, 300 units."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 300)
        self.lstm = nn.LSTM(300, 300)
        self.softmax = nn.Linear(300, 10_000)

    def forward(self, words: Tensor) -> Tensor:
        return self.softmax(self.lstm(self.embedding(words))[0]).flatten(0, 1)


@dataclass(frozen=True)
class Network:
    """A network and the size of its batches.

    Attributes:
        build: makes the network.
        inputs: shape of the inputs of a batch; images, or words if ``classes`` is also how many words there are.
        classes: number of classes.
        words: whether inputs are words, each with the next one as its target.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    classes: int
    words: bool = False

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        if self.words:
            text = torch.randint(self.classes, (self.inputs[0] + 1, *self.inputs[1:]), generator=generator)
            return text[:-1], text[1:].flatten()
        targets = torch.randint(self.classes, self.inputs[:1], generator=generator)
        return torch.randn(self.inputs, generator=generator), targets


NETWORKS = {
    "ResNet-18, batch 16": Network(resnet18, (16, 3, 224, 224), 1000),
    "ResNet-20, batch 128": Network(resnet20, (128, 3, 32, 32), 10),
    "LSTM, batch 20, 35 steps": Network(LanguageModel, (35, 20), 10_000, words=True),
    "MLP, batch 256": Network(mlp, (256, 1, 28, 28), 10),
}
