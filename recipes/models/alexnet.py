"""AlexNet with batch norm, as the networks of DoReFa-Net (Zhou et al. 2016, arXiv:1606.06160) have it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky et al. 2012) with batch norm after all layers but the first and the last.

    It follows `examples/DoReFa-Net/alexnet-dorefa.py` of tensorpack, also in its names: a first convolution of 12x12
    pixels without padding, two groups in three of the convolutions, batch norm with epsilon 0.0001, no dropout. Left
    out is the bias of ``fc0``, which batch norm takes away again. Weights are initialised as there, as by He et al.
    2015 (arXiv:1502.01852) by their inputs. torchvision's AlexNet has other widths and no batch norm: its weights do
    not fit.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 96, 12, stride=4, bias=False)
        self.conv1 = nn.Conv2d(96, 256, 5, padding=2, groups=2, bias=False)
        self.bn1 = nn.BatchNorm2d(256, eps=1e-4)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = nn.Conv2d(256, 384, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(384, eps=1e-4)
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(384, 384, 3, padding=1, groups=2, bias=False)
        self.bn3 = nn.BatchNorm2d(384, eps=1e-4)
        self.conv4 = nn.Conv2d(384, 256, 3, padding=1, groups=2, bias=False)
        self.bn4 = nn.BatchNorm2d(256, eps=1e-4)
        self.pool4 = nn.MaxPool2d(3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(6)  # which changes nothing where images have 224x224 pixels
        self.fc0 = nn.Linear(256 * 6 * 6, 4096, bias=False)
        self.bnfc0 = nn.BatchNorm1d(4096, eps=1e-4)
        self.fc1 = nn.Linear(4096, 4096, bias=False)
        self.bnfc1 = nn.BatchNorm1d(4096, eps=1e-4)
        self.fct = nn.Linear(4096, classes)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.fct.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(N, classes)``, of images, shape ``(N, 3, height, width)``."""
        inner = F.relu(self.conv0(images))
        inner = F.relu(self.pool1(self.bn1(self.conv1(inner))))
        inner = F.relu(self.pool2(self.bn2(self.conv2(inner))))
        inner = F.relu(self.bn3(self.conv3(inner)))
        inner = F.relu(self.pool4(self.bn4(self.conv4(inner))))
        inner = torch.flatten(self.avgpool(inner), 1)
        inner = F.relu(self.bnfc0(self.fc0(inner)))
        inner = F.relu(self.bnfc1(self.fc1(inner)))
        logits: Tensor = self.fct(inner)
        return logits


def alexnet(classes: int) -> AlexNet:
    """Build AlexNet: 60 981 224 parameters for 1000 classes.

    Args:
        classes: number of classes.
    """
    return AlexNet(classes)
