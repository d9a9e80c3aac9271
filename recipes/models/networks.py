"""Networks for images, by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from recipes import digits
from recipes.models.alexnet import alexnet
from recipes.models.cifar_resnet import resnet20
from recipes.models.googlenet import googlenet, googlenet_auxiliary
from recipes.models.resnet import resnet18, resnet50

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "alexnet": alexnet,
    "digits_cnn": partial(digits.network, "cnn_bn"),
    "googlenet": googlenet,
    "googlenet_auxiliary": googlenet_auxiliary,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet50": resnet50,
}
"""Constructors, which are called with the number of classes."""


def build(name: str, classes: int) -> nn.Module:
    """Build a network.

    Args:
        name: key of :data:`NETWORKS`.
        classes: number of classes.

    Raises:
        ValueError: if there is no such network, or fewer than 2 classes.

    Example:
        >>> build("resnet20", classes=100).fc
        Linear(in_features=64, out_features=100, bias=True)
    """
    if name not in NETWORKS:
        raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}, got {name!r}")
    if classes < 2:
        raise ValueError(f"`classes` must be at least 2, got {classes}")
    return NETWORKS[name](classes)
