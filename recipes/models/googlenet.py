"""GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842) with batch norm, as torchvision has it.

Names, shapes and order of parameters are those of `torchvision/models/googlenet.py`, so that its weights load strictly.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INCEPTIONS: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "3a": (192, (64, 96, 128, 16, 32, 32)), "3b": (256, (128, 128, 192, 32, 96, 64)),
    "4a": (480, (192, 96, 208, 16, 48, 64)), "4b": (512, (160, 112, 224, 24, 64, 64)),
    "4c": (512, (128, 128, 256, 24, 64, 64)), "4d": (512, (112, 144, 288, 32, 64, 64)),
    "4e": (528, (256, 160, 320, 32, 128, 128)), "5a": (832, (256, 160, 320, 32, 128, 128)),
    "5b": (832, (384, 192, 384, 48, 128, 128)),
}  # fmt: skip
"""Input channels and widths of the inception modules (table 1 of the paper)."""

AUXILIARY = {"aux1": 512, "aux2": 528}
"""Input channels of the auxiliary heads, which read what 4a and 4d make."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet, by which images are normalised."""

INITIAL_DEVIATION = 0.01
"""Of weights, as in torchvision; none is further from zero than twice as much."""


class ConvNorm(nn.Module):
    """A convolution, batch norm and ReLU.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: size of the convolution, which keeps the size of the image but for its stride.
        stride: of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, images: Tensor) -> Tensor:
        """Return rectified channels."""
        return F.relu(self.bn(self.conv(images)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side.

    The second convolution of ``branch3`` is 3x3 where the paper has 5x5: torchvision's weights are for that
    (https://github.com/pytorch/vision/issues/906).

    Args:
        inputs: channels of the input.
        widths: channels of the 1x1 branch, of the two convolutions of the second and of the third branch, and of the
            branch that pools.
    """

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        single, reduced2, branch2, reduced3, branch3, pooled = widths
        self.branch1 = ConvNorm(inputs, single, 1)
        self.branch2 = nn.Sequential(ConvNorm(inputs, reduced2, 1), ConvNorm(reduced2, branch2, 3))
        self.branch3 = nn.Sequential(ConvNorm(inputs, reduced3, 1), ConvNorm(reduced3, branch3, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), ConvNorm(inputs, pooled, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the channels of all branches."""
        return torch.cat([self.branch1(images), self.branch2(images), self.branch3(images), self.branch4(images)], 1)


class AuxiliaryHead(nn.Module):
    """A classifier in the middle of the network, which brings gradients to its beginning.

    Args:
        inputs: channels of the input.
        classes: number of classes.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = ConvNorm(inputs, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        inner = torch.flatten(self.conv(F.adaptive_avg_pool2d(images, 4)), 1)
        inner = F.dropout(F.relu(self.fc1(inner), inplace=True), 0.7, self.training)
        logits: Tensor = self.fc2(inner)
        return logits


class GoogLeNet(nn.Module):
    """GoogLeNet for images of 224x224 pixels that are normalised as those of ImageNet are.

    It brings them to [-1, 1] itself, as torchvision does for its weights (``transform_input=True``). Without auxiliary
    heads it loads the weights of a network that has them, torchvision's for example, and leaves the heads out: nothing
    but training needs them. Weights are initialised as in torchvision: normally distributed, with standard deviation
    0.01, within two standard deviations.

    Args:
        classes: number of classes.
        auxiliary: have the two auxiliary heads of the paper.
    """

    shift: Tensor
    factor: Tensor

    def __init__(self, classes: int, auxiliary: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 64, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvNorm(64, 64, 1)
        self.conv3 = ConvNorm(64, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for name, (inputs, widths) in INCEPTIONS.items():
            setattr(self, f"inception{name}", Inception(inputs, widths))
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        for name, inputs in AUXILIARY.items():
            setattr(self, name, AuxiliaryHead(inputs, classes) if auxiliary else None)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, classes)
        # (x * deviation + mean - 0.5) / 0.5, for every channel
        self.register_buffer("factor", 2 * torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", 2 * torch.tensor(MEAN).view(3, 1, 1) - 1, persistent=False)
        self._initialize()
        if not auxiliary:
            self.register_load_state_dict_pre_hook(_leave_heads_out)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = 2 * INITIAL_DEVIATION
                nn.init.trunc_normal_(module.weight, std=INITIAL_DEVIATION, a=-bound, b=bound)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits, shape ``(N, classes)``; in training also those of the auxiliary heads, behind them.

        Args:
            images: shape ``(N, 3, height, width)``.
        """
        inner = self.maxpool1(self.conv1(images * self.factor + self.shift))
        inner = self.maxpool2(self.conv3(self.conv2(inner)))
        inner = self.maxpool3(self.inception3b(self.inception3a(inner)))
        after4a = self.inception4a(inner)
        after4d = self.inception4d(self.inception4c(self.inception4b(after4a)))
        inner = self.maxpool4(self.inception4e(after4d))
        inner = self.inception5b(self.inception5a(inner))
        logits: Tensor = self.fc(self.dropout(torch.flatten(self.avgpool(inner), 1)))
        if self.training and self.aux1 is not None:
            return logits, self.aux1(after4a), self.aux2(after4d)
        return logits


def _leave_heads_out(network: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    heads = tuple(f"{prefix}{name}." for name in AUXILIARY)
    for key in [key for key in state_dict if key.startswith(heads)]:
        del state_dict[key]


def googlenet(classes: int) -> GoogLeNet:
    """Build GoogLeNet without auxiliary heads: 6 624 904 parameters for 1000 classes.

    Args:
        classes: number of classes.

    Example:
        >>> sum(parameter.numel() for parameter in googlenet(1000).parameters())
        6624904
    """
    return GoogLeNet(classes, auxiliary=False)


def googlenet_auxiliary(classes: int) -> GoogLeNet:
    """Build GoogLeNet with auxiliary heads: 13 004 888 parameters for 1000 classes.

    The last layers of the heads, ``aux1.fc2`` and ``aux2.fc2``, are in front of the last layer of the network; where
    that one is to stay float, they have to be named: ``exclude=["*.aux?.fc2"]``.

    Args:
        classes: number of classes.
    """
    return GoogLeNet(classes, auxiliary=True)
