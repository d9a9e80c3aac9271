"""Find weights of quantized layers that are also read outside of the forward of their layer, where they are float.

Nothing can be put in front of such a read without slowing every other, so it is found in the graph of one backward
pass. A layer reads its weight through an alias, which makes a node of its own; any other path from the loss to the
weight is a read from outside. One that reaches the loss through nothing but arithmetic is a penalty on the weight, and
meant to be float.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_ARITHMETIC = re.compile(
    r"(Abs|Add|Alias|Cat|Clone|Div|Dot|Expand|ForeachNorm|LinalgVectorNorm|Max|Mean|Mul|Neg|Norm|Pow|Reshape|Select|"
    r"Sqrt|Squeeze|Stack|Std|Sub|Sum|T|ToCopy|Transpose|Unbind|UnsafeView|Unsqueeze|Var|View|_DDPSink)Backward\d*"
)
"""Names of the nodes of which penalties are made; a network has others, a product or a nonlinearity."""

_COMPILED = re.compile(r"CompiledFunction")
"""Nodes of compiled code, in which a layer's own reads cannot be told from others."""


class FloatReads:
    """A search for float reads within the forward and backward passes of one batch.

    Example:
        >>> reads, layer = FloatReads(), nn.Linear(2, 2)
        >>> weight = reads.own(layer, "weight", layer.weight)
        >>> outside = torch.ones(1, 2) @ layer.weight
        >>> reads.search((torch.ones(1, 2) @ weight + outside).sum())
        >>> reads.found == [(layer, "weight")]
        True
    """

    def __init__(self) -> None:
        self.found: list[tuple[nn.Module, str]] = []
        self._own: set[Any] = set()
        self._weights: dict[Any, tuple[nn.Module, str]] = {}

    def own(self, layer: nn.Module, name: str, weight: Tensor) -> Tensor:
        """Return an alias of a weight that its layer is about to quantize."""
        if not weight.requires_grad or not torch.is_grad_enabled():
            return weight
        alias: Tensor = torch.ops.aten.alias(weight)
        node: Any = alias.grad_fn
        if node is not None:
            self._own.add(node)
            self._weights.setdefault(node.next_functions[0][0], (layer, name))
        return alias

    def search(self, loss: Tensor) -> None:
        """Add to :attr:`found` what the graph of ``loss`` shows, before it is freed by the backward pass."""
        for node in self._read_outside(loss):
            read = self._weights[node]
            if read not in self.found:
                self.found.append(read)

    def _read_outside(self, loss: Tensor) -> Iterator[Any]:
        """Nodes of weights to which a path leads from the loss that is neither a layer's own nor only arithmetic."""
        waiting: list[tuple[Any, bool]] = [(loss.grad_fn, False)]
        seen = set(waiting)
        while waiting:
            node, crossed = waiting.pop()
            if node is None or node in self._own:
                continue
            if node in self._weights and crossed:
                yield node
            is_compiled = _COMPILED.match(node.name()) is not None
            crossed = crossed or _ARITHMETIC.fullmatch(node.name()) is None
            for following, _ in node.next_functions:
                if (following, crossed) not in seen and not (is_compiled and following in self._weights):
                    seen.add((following, crossed))
                    waiting.append((following, crossed))
