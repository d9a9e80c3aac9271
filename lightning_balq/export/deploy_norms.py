"""Find the batch norms that follow a convolution, and fold them into its scales and its bias."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class _Tracer(fx.Tracer):
    """Goes into no quantized layer: nothing is asked about its inside."""

    def __init__(self, leaves: Collection[nn.Module]) -> None:
        super().__init__()
        self.leaves = set(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.leaves or isinstance(m, NORMS) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, leaves: Collection[nn.Module]) -> fx.Graph:
    """Calls that the forward of a model makes.

    Args:
        model: in evaluation mode.
        leaves: modules whose inside does not matter.

    Raises:
        Exception: of any kind, if its forward depends on values or shapes.
    """
    return _Tracer(leaves).trace(model)


def following_norms(model: nn.Module, graph: fx.Graph) -> dict[nn.Module, nn.Module]:
    """Convolutions whose output goes into one batch norm and nowhere else, and that batch norm.

    Both are called once, and the batch norm uses the statistics of training.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(modules[str(node.target)], []).append(node)
    found: dict[nn.Module, nn.Module] = {}
    for norm, nodes in calls.items():
        given = nodes[0].args[0] if nodes[0].args and not nodes[0].kwargs else None
        if not isinstance(given, fx.Node) or given.op != "call_module" or len(given.users) > 1:
            continue
        layer = modules[str(given.target)]
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and is_foldable(norm) and len(nodes) == len(calls[layer]) == 1:
            found[layer] = norm
    return found


def read_directly(model: nn.Module, graph: fx.Graph) -> set[nn.Module]:
    """Modules of which the forward of another one reads a parameter or a buffer."""
    owners = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    return {module for name, module in model.named_modules(remove_duplicate=False) if name in owners}


def is_foldable(norm: nn.Module) -> bool:
    """Whether a module is a batch norm that is one factor and one offset for each channel."""
    return (
        type(norm) in NORMS
        and norm.running_mean is not None
        and norm.running_var is not None
        and not norm._forward_hooks
        and not norm._forward_pre_hooks
        and "forward" not in norm.__dict__
    )


def factor_and_offset(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and offset of each channel, in float64.

    Example:
        >>> norm = nn.BatchNorm2d(1, eps=0.0)
        >>> norm.running_mean.fill_(3.0), norm.running_var.fill_(4.0)
        (tensor([3.]), tensor([4.]))
        >>> factor_and_offset(norm)
        (tensor([0.5000], dtype=torch.float64), tensor([-1.5000], dtype=torch.float64))
    """
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    factor = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    offset = -mean * factor
    return factor, offset if norm.bias is None else offset + norm.bias.detach().double()
