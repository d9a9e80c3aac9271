"""Residual networks for CIFAR-10 (He et al. 2015, arXiv:1512.03385, section 4.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.models.resnet import BasicBlock, initialize_

STAGES = (16, 32, 64)
"""Width of each stage; all but the first halve the image."""


class PaddedShortcut(nn.Module):
    """Every other pixel, with channels of zeros behind those there are: option A, a shortcut without parameters.

    Args:
        channels: how many channels of zeros.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Return images of half the size."""
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


class CifarResNet(nn.Module):
    """A residual network with three stages, for images of 32x32 pixels.

    torchvision has no such network; names follow its networks for ImageNet. Convolutions are initialised as there.

    Args:
        blocks: how many blocks each stage has; the network has ``6 * blocks + 2`` layers.
        classes: number of classes.
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STAGES[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGES[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(STAGES[0], STAGES[0], blocks)
        self.layer2 = _stage(STAGES[0], STAGES[1], blocks)
        self.layer3 = _stage(STAGES[1], STAGES[2], blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(STAGES[2], classes)
        initialize_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(N, classes)``, of images, shape ``(N, 3, height, width)``."""
        inner = self.relu(self.bn1(self.conv1(images)))
        inner = self.layer3(self.layer2(self.layer1(inner)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(inner), 1))
        return logits


def _stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
    widens = width != inputs
    first = BasicBlock(inputs, width, 2 if widens else 1, PaddedShortcut(width - inputs) if widens else None)
    return nn.Sequential(first, *[BasicBlock(width, width, 1, None) for _ in range(blocks - 1)])


def resnet20(classes: int) -> CifarResNet:
    """Build ResNet-20: 269 722 parameters for 10 classes.

    Args:
        classes: number of classes.

    Example:
        >>> sum(parameter.numel() for parameter in resnet20(10).parameters())
        269722
    """
    return CifarResNet(3, classes)
