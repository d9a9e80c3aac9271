"""Residual networks for ImageNet (He et al. 2015, arXiv:1512.03385).

Names, shapes and order of parameters are those of `torchvision/models/resnet.py`, so that its weights load strictly.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

STAGES = (64, 128, 256, 512)
"""Width of each stage; all but the first halve the image."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inputs: channels of the input.
        width: channels of the convolutions and of the output.
        stride: of the first convolution.
        downsample: the shortcut, where shapes differ; ``None`` for the input itself.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of the shortcut and what the convolutions make, rectified."""
        shortcut = images if self.downsample is None else self.downsample(images)
        inner = self.relu(self.bn1(self.conv1(images)))
        return self.relu(self.bn2(self.conv2(inner)) + shortcut)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut.

    The stride is in the 3x3 convolution, as in torchvision's "v1.5"; He et al. have it in the first one.

    Args:
        inputs: channels of the input.
        width: channels of the 3x3 convolution, a quarter of those of the output.
        stride: of the 3x3 convolution.
        downsample: the shortcut, where shapes differ; ``None`` for the input itself.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum of the shortcut and what the convolutions make, rectified."""
        shortcut = images if self.downsample is None else self.downsample(images)
        inner = self.relu(self.bn1(self.conv1(images)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        return self.relu(self.bn3(self.conv3(inner)) + shortcut)


class ResNet(nn.Module):
    """A residual network with four stages, for images of 224x224 pixels.

    Convolutions are initialised as by He et al. 2015 (arXiv:1502.01852) by their outputs, as in torchvision.

    Args:
        block: kind of the blocks.
        blocks: how many blocks each stage has.
        classes: number of classes.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STAGES[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGES[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = STAGES[0]
        for number, (width, count) in enumerate(zip(STAGES, blocks, strict=True), start=1):
            setattr(self, f"layer{number}", _stage(block, inputs, width, count, stride=1 if number == 1 else 2))
            inputs = width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialize_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(N, classes)``, of images, shape ``(N, 3, height, width)``."""
        inner = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        inner = self.layer4(self.layer3(self.layer2(self.layer1(inner))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(inner), 1))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    others = [block(outputs, width, 1, None) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, width, stride, shortcut), *others)


def initialize_(network: nn.Module) -> None:
    """Draw the weights of all convolutions from the normal distribution of He et al. 2015 (arXiv:1502.01852), eq. 14.

    Args:
        network: whose convolutions are initialised; the rest is left as torch made it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(classes: int) -> ResNet:
    """Build ResNet-18: 11 689 512 parameters for 1000 classes.

    Args:
        classes: number of classes.

    Example:
        >>> sum(parameter.numel() for parameter in resnet18(1000).parameters())
        11689512
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), classes)


def resnet50(classes: int) -> ResNet:
    """Build ResNet-50: 25 557 032 parameters for 1000 classes.

    Args:
        classes: number of classes.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)
