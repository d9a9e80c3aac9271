"""Nodes and constants of an ONNX graph under way."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_balq.export.onnx.packages import onnx_library

OPSET = 20
"""Version of the standard operators."""

PREFIX = "lightning_balq/"
"""Begins every name made here, so that none is a name of the model."""


class GraphBuilder:
    """Emits nodes, and constants that are stored once whatever uses them.

    Attributes:
        head: nodes that depend on constants alone, to be run before all others; also seen from bodies of loops.
        nodes: nodes since the last :meth:`take`.
        initializers: constants by name.
    """

    def __init__(self) -> None:
        self.head: list[Any] = []
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._constants: dict[Hashable, str] = {}
        self._made: dict[Hashable, str] = {}
        self._names = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Emit a node with one output; return the name of that."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: tuple[str, ...], outputs: int, **attributes: Any) -> list[str]:
        """Emit a node; return the names of its outputs."""
        names = [self.name(kind) for _ in range(outputs)]
        self.nodes.append(onnx_library("helper").make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: Tensor) -> str:
        """Name of a constant; equal ones are one."""
        value = value.detach().cpu().contiguous()
        array = value.numpy()
        key = (str(value.dtype), tuple(value.shape), array.tobytes())
        if key not in self._constants:
            name = self.name("constant")
            self.initializers[name] = onnx_library("numpy_helper").from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def floats(self, *values: float) -> str:
        """Name of a float32 constant: a scalar of one value."""
        return self.constant(torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float32))

    def integers(self, *values: int) -> str:
        """Name of an int64 constant of one dimension, as shapes and axes are."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def byte(self, value: int) -> str:
        """Name of a uint8 scalar."""
        return self.constant(torch.tensor(value, dtype=torch.uint8))

    def cast(self, value: str, dtype: str) -> str:
        """Emit a conversion to a type by its ONNX name, such as ``"INT8"``."""
        return self.op("Cast", value, to=getattr(onnx_library().TensorProto, dtype))

    def once(self, key: Hashable, make: Callable[[], str]) -> str:
        """Name of what ``make`` emits, among the nodes of the head and once for each key."""
        if key not in self._made:
            with self.into(self.head):
                self._made[key] = make()
        return self._made[key]

    @contextmanager
    def into(self, nodes: list[Any]) -> Iterator[None]:
        """Within the context, nodes are added to that list."""
        outer, self.nodes = self.nodes, nodes
        try:
            yield
        finally:
            self.nodes = outer

    def name(self, hint: str) -> str:
        """Name that nothing else has."""
        self._names += 1
        return f"{PREFIX}{hint}_{self._names}"
