"""Find out whether a model has been trained before."""

import math

import torch
from torch import nn
from torch.nn.parameter import is_lazy

_COUNTING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def evidence_of_training(model: nn.Module) -> str:
    r"""Say what shows that ``model`` was trained before; empty if nothing does.

    Batch norms count the batches they saw. Where there is none, biases tell: a fresh one is constant, or within
    :math:`1 / \sqrt{\text{fan in}}`, torch's default initialisation.

    Example:
        >>> evidence_of_training(nn.Linear(8, 8))
        ''
    """
    for name, module in model.named_modules():
        if isinstance(module, _COUNTING) and module.num_batches_tracked is not None:
            seen = int(module.num_batches_tracked)
            if seen:
                return f"batch norm {name!r} has seen {seen} batches"
        if isinstance(module, (nn.Linear, *_CONV)) and _bias_is_trained(module):
            return f"the bias of {name!r} lies outside its initial range"
    return ""


@torch.no_grad()
def _bias_is_trained(layer: nn.Module) -> bool:
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None or bias is None or is_lazy(weight) or not bias.numel() or weight.dim() < 2:
        return False
    bound = 1 / math.sqrt(max(math.prod(weight.shape[1:]), 1))
    values = bias.full_tensor() if hasattr(bias, "full_tensor") else bias  # of shards, which cannot be indexed
    return bool((values != values[0]).any()) and float(values.abs().amax()) > 1.01 * bound
