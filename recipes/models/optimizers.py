"""The optimizers of image classifiers, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

OptimizerName = Literal["sgd", "adam", "adamw"]


def optimizer_factory(
    name: OptimizerName, learning_rate: float, momentum: float, nesterov: bool
) -> Callable[..., Optimizer]:
    """Return a constructor that takes parameters or groups of them.

    Args:
        name: which optimizer.
        learning_rate: largest one of the training, more than 0.
        momentum: of SGD; of Adam and AdamW the first beta, which is the same: the share of old gradients in the mean.
        nesterov: let SGD look ahead.

    Raises:
        ValueError: if an argument is out of range or of another optimizer.
    """
    names = get_args(OptimizerName)
    if name not in names:
        raise ValueError(f"`optimizer` must be one of {', '.join(names)}, got {name!r}")
    if learning_rate < 0:
        raise ValueError(f"`learning_rate` must be 0 or more, got {learning_rate}")
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be at least 0 and less than 1, got {momentum}")
    if nesterov and (name != "sgd" or momentum == 0):
        raise ValueError(f"`nesterov` is for `optimizer: sgd` with momentum, got {name} with momentum {momentum}")
    if name == "sgd":
        return partial(SGD, lr=learning_rate, momentum=momentum, nesterov=nesterov)
    return partial(Adam if name == "adam" else AdamW, lr=learning_rate, betas=(momentum, 0.999))


def parameter_groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Divide the parameters into those that decay and those that do not.

    Args:
        model: whose trainable parameters are divided; each is in one group, and no group is empty.
        weight_decay: of the parameters that decay.
        decay_norm_and_bias: let the parameters of batch norm and biases decay too, as in the papers of the networks;
            without it they do not (Goyal et al. 2017, arXiv:1706.02677; He et al. 2018, arXiv:1812.01187).

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> [(group["weight_decay"], len(group["params"])) for group in parameter_groups(model, 0.1, False)]
        [(0.1, 1), (0.0, 3)]
    """
    decaying, others = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:  # those of batch norm and biases have one dimension, weights have more
            (decaying if decay_norm_and_bias or parameter.dim() > 1 else others).append(parameter)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
