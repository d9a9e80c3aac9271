"""Replace the placeholders of a graph by standard operators."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from lightning_balq.export.description import QuantizedWeight
from lightning_balq.export.onnx.activation import emit_integers, emit_levels
from lightning_balq.export.onnx.convolution import emit_convolution
from lightning_balq.export.onnx.decode import decode_levels
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.export.onnx.packages import onnx_library
from lightning_balq.export.onnx.plan import LayerPlan
from lightning_balq.export.onnx.product import emit_product
from lightning_balq.export.onnx.recurrent import RecurrentEmitter
from lightning_balq.export.onnx.trace import DOMAIN, KEY


def expand(model: Any, plans: Mapping[str, LayerPlan], weights: Mapping[str, QuantizedWeight]) -> dict[str, str]:
    """Replace all placeholders of an ONNX model, in place, and tell which values were marked.

    Args:
        model: ``onnx.ModelProto`` with placeholders.
        plans: of the layers by name.
        weights: quantized weights by key.

    Returns:
        Names of values by the keys of their marks.
    """
    expander = _Expander(plans, weights)
    expander.expand_graph(model.graph)
    expander.finish(model.graph)
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return expander.marks


class _Expander:
    """Replaces placeholders, whose outputs get other names."""

    def __init__(self, plans: Mapping[str, LayerPlan], weights: Mapping[str, QuantizedWeight]) -> None:
        self.plans = plans
        self.weights = weights
        self.builder = GraphBuilder()
        self.renamed: dict[str, str] = {}
        self.marks: dict[str, str] = {}
        self.kinds: dict[str, Callable[[str, list[str]], list[str]]] = {
            "Weight": self._weight,
            "Activation": self._activation,
            "Linear": self._linear,
            "Convolution": self._convolution,
            "Recurrent": self._recurrent,
            "Mark": self._mark,
        }

    def expand_graph(self, graph: Any) -> None:
        """Replace the placeholders of a graph and of those within its nodes."""
        nodes: list[Any] = []
        with self.builder.into(nodes):
            for node in graph.node:
                for index, name in enumerate(node.input):
                    node.input[index] = self.renamed.get(name, name)
                for attribute in node.attribute:
                    for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                        self.expand_graph(inner)
                if node.domain != DOMAIN:
                    nodes.append(node)
                    continue
                key = next(attribute.s.decode() for attribute in node.attribute if attribute.name == KEY)
                results = self.kinds[node.op_type](key, list(node.input))
                self.renamed |= {old: new for old, new in zip(node.output, results, strict=True) if old}
            helper = onnx_library("helper")
            outputs = [output.name for output in graph.output if output.name in self.renamed]
            nodes += [helper.make_node("Identity", [self.renamed[name]], [name]) for name in outputs]
        del graph.node[:]
        graph.node.extend(nodes)
        known = [info for info in graph.value_info if info.name not in self.renamed]
        del graph.value_info[:]
        graph.value_info.extend(known)

    def finish(self, graph: Any) -> None:
        """Put constants, and nodes that depend on them alone, into the main graph; drop what nothing uses."""
        used = {output.name for output in graph.output} | set(self.marks.values())
        nodes = []
        for node in reversed([*self.builder.head, *graph.node]):
            if not used.isdisjoint(node.output):
                nodes.append(node)
                used |= _read(node)
        del graph.node[:]
        graph.node.extend(reversed(nodes))
        kept = [value for value in [*graph.initializer, *self.builder.initializers.values()] if value.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _weight(self, key: str, inputs: list[str]) -> list[str]:
        return [decode_levels(self.builder, self.weights[key])]

    def _activation(self, key: str, inputs: list[str]) -> list[str]:
        name, _, given = key.rpartition(":")
        return [emit_levels(self.builder, inputs[0], self.plans[name].described.inputs[given])]

    def _linear(self, key: str, inputs: list[str]) -> list[str]:
        layer, weight, given, form = self._parts(key)
        integers = emit_integers(self.builder, inputs[0], given)
        return [emit_product(self.builder, integers, given, weight, form, layer.bias)]

    def _convolution(self, key: str, inputs: list[str]) -> list[str]:
        layer, weight, given, form = self._parts(key)
        return [emit_convolution(self.builder, inputs[0], layer, given, weight, form, layer.bias)]

    def _recurrent(self, key: str, inputs: list[str]) -> list[str]:
        plan = self.plans[key]
        emitter = RecurrentEmitter(cast(nn.RNNBase, plan.layer), plan.described, plan.forms)
        x, hidden, *cell = inputs
        outputs, last_hidden, last_cell = emitter.emit(self.builder, x, hidden, cell[0] if cell else "")
        return [outputs, last_hidden, last_cell] if cell else [outputs, last_hidden]

    def _mark(self, key: str, inputs: list[str]) -> list[str]:
        self.marks[key] = inputs[0]
        return inputs

    def _parts(self, key: str) -> tuple[Any, Any, Any, Any]:
        plan = self.plans[key]
        return plan.layer, plan.described.weights["weight"], plan.input_of("weight"), plan.forms["weight"]


def _read(node: Any) -> set[str]:
    """Names that a node reads, the nodes of graphs within it included."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names |= {output.name for output in inner.output}.union(*map(_read, inner.node))
    return names
