"""Recurrent layers: the operators of ONNX where the hidden state is float, else a loop over steps (Scan).

A quantized hidden state is carried from step to step as levels, or as the integers that the recurrent product takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_balq.export.description import QuantizedInput, QuantizedLayer, QuantizedWeight
from lightning_balq.export.onnx.activation import (
    UNKNOWN,
    Known,
    emit_codes,
    emit_integers,
    emit_integers_of,
    emit_levels,
    emit_levels_of,
    emit_levels_of_codes,
)
from lightning_balq.export.onnx.decode import decode_levels, with_rows
from lightning_balq.export.onnx.forms import WeightForm
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.export.onnx.packages import onnx_library
from lightning_balq.export.onnx.product import emit_product

_OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "RNN_TANH": "RNN", "RNN_RELU": "RNN"}

_ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}
"""Gates of torch in the order of the operators."""

_LOOP_GATES = {"LSTM": (0, 1, 3, 2), "GRU": (0, 1, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}
"""Gates of torch in the order of the loops: those with a sigmoid first."""


@dataclass(frozen=True)
class _Sequence:
    """Hidden states or inputs of all steps, shape ``(T, B, F)``.

    Attributes:
        name: of float values; or, if it is known what they stand for, of integers, or of codes.
        given: what they stand for.
        is_codes: whether they are codes, none of a zero.
    """

    name: str
    given: QuantizedInput | None = None
    is_codes: bool = False

    def levels(self, builder: GraphBuilder) -> str:
        if self.given is None:
            return self.name
        return (emit_levels_of_codes if self.is_codes else emit_levels_of)(builder, self.name, self.given)

    def integers(self, builder: GraphBuilder) -> "_Sequence":
        if self.given is None or not self.is_codes:
            return self
        return _Sequence(emit_integers_of(builder, self.name, self.given), self.given)


@dataclass(frozen=True)
class RecurrentEmitter:
    """Emits one recurrent layer.

    Attributes:
        layer: the module.
        described: its quantized weights and inputs.
        forms: integers of the weights whose products are computed in them.
    """

    layer: nn.RNNBase
    described: QuantizedLayer
    forms: Mapping[str, WeightForm]
    _arranged: dict[tuple[str, tuple[int, ...]], QuantizedWeight] = field(default_factory=dict)

    def emit(self, builder: GraphBuilder, x: str, hidden: str, cell: str) -> tuple[str, str, str]:
        """Emit all layers and directions.

        Args:
            builder: where to.
            x: input, shape ``(T, B, F)``, not quantized.
            hidden: initial hidden states, shape ``(layers * directions, B, H)``.
            cell: initial cell states of an LSTM, likewise; else empty.

        Returns:
            Hidden states of the last layer, ``(T, B, directions * H)``, and the last hidden and cell states.
        """
        data = self._input(builder, x)
        ends: list[tuple[str, str]] = []
        use_loop = "state_l0" in self.described.inputs or self.layer.proj_size > 0
        for index in range(self.layer.num_layers):
            run = self._loops if use_loop else self._operator
            data, hiddens, cells = run(builder, index, data, hidden, cell)
            ends.append((hiddens, cells))
        last_hidden, last_cell = (
            parts[0] if len(parts) == 1 or not parts[0] else builder.op("Concat", *parts, axis=0)
            for parts in (list(column) for column in zip(*ends, strict=True))
        )
        return data.levels(builder), last_hidden, last_cell

    def _input(self, builder: GraphBuilder, x: str) -> _Sequence:
        given = self.described.inputs.get("input")
        if given is None:
            return _Sequence(x)
        if any(name.startswith("weight_ih_l0") for name in self.forms):
            return _Sequence(emit_integers(builder, x, given), given)
        return _Sequence(emit_levels(builder, x, given))

    def _operator(
        self, builder: GraphBuilder, index: int, data: _Sequence, hidden: str, cell: str
    ) -> tuple[_Sequence, str, str]:
        """One layer, both directions, as an operator of ONNX."""
        layer = self.layer
        order = _ONNX_GATES[layer.mode]
        suffixes = self._suffixes(index)

        def stacked(kind: str) -> str:
            axis = builder.integers(0)
            matrices = [
                builder.op("Unsqueeze", self._matrix(builder, kind + suffix, order), axis) for suffix in suffixes
            ]
            return matrices[0] if len(matrices) == 1 else builder.op("Concat", *matrices, axis=0)

        biases = [
            torch.cat([self._bias(kind + suffix, order) for kind in ("bias_ih", "bias_hh")]) for suffix in suffixes
        ]
        attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
        attributes["direction"] = "bidirectional" if layer.bidirectional else "forward"
        if layer.mode == "GRU":
            attributes["linear_before_reset"] = 1
        if layer.mode.startswith("RNN"):
            attributes["activations"] = ["Relu" if layer.mode == "RNN_RELU" else "Tanh"] * len(suffixes)
        states = [self._initial(builder, state, index) for state in (hidden, cell) if state]
        matrices = stacked("weight_ih"), stacked("weight_hh")
        inputs = (data.levels(builder), *matrices, builder.constant(torch.stack(biases)), "", *states)
        outputs, *last = builder.ops(_OPERATORS[layer.mode], inputs, 3 if cell else 2, **attributes)
        outputs = builder.op("Transpose", outputs, perm=[0, 2, 1, 3])
        outputs = builder.op("Reshape", outputs, builder.integers(0, 0, -1))
        return _Sequence(outputs), last[0], last[1] if cell else ""

    def _loops(
        self, builder: GraphBuilder, index: int, data: _Sequence, hidden: str, cell: str
    ) -> tuple[_Sequence, str, str]:
        """One layer, as a loop for each direction."""
        given = self.described.inputs.get(f"state_l{index}")
        starts = [self._split(builder, state, index) if state else [] for state in (hidden, cell)]
        runs = [
            self._loop(builder, suffix, given, data, [part[place] for part in starts if part])
            for place, suffix in enumerate(self._suffixes(index))
        ]
        outputs = [run[0] for run in runs]
        if not all(output.is_codes for output in outputs):
            outputs = [output.integers(builder) for output in outputs]
        joined = outputs[0].name
        if len(runs) > 1:
            joined = builder.op("Concat", *(output.name for output in outputs), axis=-1)
        axis = builder.integers(0)
        ends = [
            [builder.op("Unsqueeze", end, axis) for end in column]
            for column in zip(*(run[1] for run in runs), strict=True)
        ]
        last = [column[0] if len(column) == 1 else builder.op("Concat", *column, axis=0) for column in ends]
        return replace(outputs[0], name=joined), last[0], last[1] if len(last) > 1 else ""

    def _loop(
        self, builder: GraphBuilder, suffix: str, given: QuantizedInput | None, data: _Sequence, starts: list[str]
    ) -> tuple[_Sequence, list[str]]:
        """One direction of one layer: hidden states of all steps, and the last hidden and cell state."""
        carried = given if f"weight_hh{suffix}" in self.forms else None
        known = self._known(suffix, given)
        hands_codes = carried is not None and known.nonzero
        projected = self._projected(builder, suffix, data)
        hidden, *cell = starts
        if given is not None:
            hidden = (emit_levels if carried is None else emit_integers)(builder, hidden, given)

        types = onnx_library().TensorProto
        before, memory, row = (builder.name(kind) for kind in ("state", "memory", "row"))
        body: list[Any] = []
        with builder.into(body):
            raw, after_memory = self._step(builder, suffix, carried, before, memory, row)
            # What the loop hands out must have a name of its own; on the way to the next state some cost nothing.
            if carried is None:
                after = raw if given is None else emit_levels(builder, raw, given)
                output = builder.op("Identity", after)
            elif hands_codes:
                output = emit_codes(builder, raw, carried, known)
                after = emit_integers_of(builder, output, carried)
            else:
                output = raw
                after = emit_integers(builder, raw, carried, known)
        states = [_State(hidden, before, after, types.FLOAT if carried is None else types.UINT8)]
        states += [_State(start, memory, after_memory, types.FLOAT) for start in cell]
        handed = _State(projected, row, output, types.UINT8 if hands_codes else types.FLOAT)
        *last, sequence = _scan(builder, body, states, handed, reverse=suffix.endswith("_reverse"))
        if carried is None:
            return _Sequence(sequence), last
        last[0] = emit_levels_of(builder, last[0], carried)
        if not hands_codes:
            sequence = emit_integers(builder, sequence, carried, known)
        return _Sequence(sequence, carried, hands_codes), last

    def _step(
        self, builder: GraphBuilder, suffix: str, carried: QuantizedInput | None, before: str, memory: str, row: str
    ) -> tuple[str, str]:
        """Emit one step in the body of a loop: the hidden state, not quantized, and the cell state of an LSTM."""
        layer, mode, key = self.layer, self.layer.mode, "weight_hh" + suffix
        order = _LOOP_GATES[mode]
        added: str | None = row
        if mode == "GRU":  # whose reset gate comes between
            added = builder.constant(self._bias("bias_hh" + suffix, order)) if layer.bias else None
        if carried is not None:
            products = emit_product(builder, before, carried, self._weight(key, order), self.forms[key], added)
        else:
            with builder.into(builder.head):  # constant in the loop
                recurrent = builder.op("Transpose", self._matrix(builder, key, order), perm=[1, 0])
            products = builder.op("MatMul", before, recurrent)
            if added is not None:
                products = builder.op("Add", products, added)
        level = before if carried is None or mode != "GRU" else emit_levels_of(builder, before, carried)
        raw, after_memory = _gates(builder, mode, layer.hidden_size, products, row, level, memory)
        if layer.proj_size:
            with builder.into(builder.head):
                projection = builder.op("Transpose", self._matrix(builder, "weight_hr" + suffix), perm=[1, 0])
            raw = builder.op("MatMul", raw, projection)
        return raw, after_memory

    def _projected(self, builder: GraphBuilder, suffix: str, data: _Sequence) -> str:
        """Products of the inputs of all steps, with every bias that is simply added."""
        order, key = _LOOP_GATES[self.layer.mode], "weight_ih" + suffix
        bias = self._bias("bias_ih" + suffix, order)
        if self.layer.mode != "GRU":
            bias = bias + self._bias("bias_hh" + suffix, order)
        if key in self.forms and data.given is not None:
            weight = self._weight(key, order)
            return emit_product(builder, data.integers(builder).name, data.given, weight, self.forms[key], bias)
        kernel = builder.op("Transpose", self._matrix(builder, key, order), perm=[1, 0])
        return builder.op("Add", builder.op("MatMul", data.levels(builder), kernel), builder.constant(bias))

    def _known(self, suffix: str, given: QuantizedInput | None) -> Known:
        """What is known of hidden states, which a tanh bounds and makes.

        None is zero if the tanh has a bias in each unit: but where roundings of other sums happen to make it, which is
        another unit in another runtime.
        """
        if given is None or not given.signed or self.layer.mode == "RNN_RELU" or self.layer.proj_size:
            return UNKNOWN
        order = _LOOP_GATES[self.layer.mode]  # the tanh is last
        biases = self._bias("bias_ih" + suffix, order) + self._bias("bias_hh" + suffix, order)
        nonzero = bool((biases[-self.layer.hidden_size :] != 0).all())
        return Known(inside=given.range is not None and given.range >= 1, nonzero=nonzero)

    def _suffixes(self, index: int) -> list[str]:
        return [f"_l{index}", f"_l{index}_reverse"] if self.layer.bidirectional else [f"_l{index}"]

    def _matrix(self, builder: GraphBuilder, name: str, order: tuple[int, ...] = (0,)) -> str:
        """Emit a weight, quantized or not, with its gates in that order."""
        if name in self.described.weights:
            return decode_levels(builder, self._weight(name, order))
        value: Tensor = getattr(self.layer, name).detach()
        return builder.constant(value[self._rows(len(value), order)])

    def _weight(self, name: str, order: tuple[int, ...]) -> QuantizedWeight:
        if (name, order) not in self._arranged:
            weight = self.described.weights[name]
            self._arranged[name, order] = with_rows(weight, self._rows(len(weight.codes), order))
        return self._arranged[name, order]

    def _bias(self, name: str, order: tuple[int, ...]) -> Tensor:
        """A bias with its gates in that order; zeros if the layer has none."""
        gates = len(order) * self.layer.hidden_size
        bias: Tensor = getattr(self.layer, name).detach() if self.layer.bias else torch.zeros(gates)
        return bias[self._rows(gates, order)]

    def _rows(self, count: int, order: tuple[int, ...]) -> Tensor:
        return torch.arange(count).reshape(len(order), -1)[list(order)].flatten()

    def _initial(self, builder: GraphBuilder, states: str, index: int) -> str:
        """Emit the initial states of one layer, shape ``(directions, B, H)``."""
        if self.layer.num_layers == 1:
            return states
        count = len(self._suffixes(index))
        bounds = builder.integers(index * count), builder.integers((index + 1) * count)
        return builder.op("Slice", states, *bounds, builder.integers(0))

    def _split(self, builder: GraphBuilder, states: str, index: int) -> list[str]:
        """Emit the initial state of each direction of one layer, shape ``(B, H)``."""
        count = len(self._suffixes(index))
        places = [torch.tensor(index * count + place) for place in range(count)]
        return [builder.op("Gather", states, builder.constant(place), axis=0) for place in places]


class _State(NamedTuple):
    """A value that a loop carries: its start, its names before and after a step, and its type.

    Of rows, which go in and come out one by one: all of them, the names of one that goes in and one that comes out, and
    the type of the latter.
    """

    start: str
    before: str
    after: str
    kind: int


def _scan(builder: GraphBuilder, body: list[Any], states: list[_State], rows: _State, *, reverse: bool) -> list[str]:
    """Emit a loop over rows of float32: the last states, and all rows that came out."""
    helper = onnx_library("helper")
    given = [*((state.before, state.kind) for state in states), (rows.before, onnx_library().TensorProto.FLOAT)]
    graph = helper.make_graph(
        body,
        builder.name("step"),
        [helper.make_tensor_value_info(name, kind, None) for name, kind in given],
        [helper.make_tensor_value_info(state.after, state.kind, None) for state in (*states, rows)],
    )
    return builder.ops(
        "Scan",
        tuple(state.start for state in (*states, rows)),
        len(states) + 1,
        body=graph,
        num_scan_inputs=1,
        scan_input_directions=[int(reverse)],
        scan_output_directions=[int(reverse)],
    )


def _gates(
    builder: GraphBuilder, mode: str, size: int, products: str, row: str, hidden: str, memory: str
) -> tuple[str, str]:
    """Emit one step: the hidden state, not quantized, and the cell state of an LSTM.

    Products hold the row already, but those of a GRU.
    """
    if mode == "GRU":
        sizes = builder.integers(2 * size, size)
        entry, candidate = builder.ops("Split", (row, sizes), 2, axis=-1)
        recurrent, recurrent_candidate = builder.ops("Split", (products, sizes), 2, axis=-1)
        gates = builder.op("Sigmoid", builder.op("Add", entry, recurrent))
        reset, update = builder.ops("Split", (gates, builder.integers(size, size)), 2, axis=-1)
        new = builder.op("Tanh", builder.op("Add", candidate, builder.op("Mul", reset, recurrent_candidate)))
        step = builder.op("Mul", update, builder.op("Sub", hidden, new))
        return builder.op("Add", new, step), ""
    if mode != "LSTM":
        return builder.op("Relu" if mode == "RNN_RELU" else "Tanh", products), ""
    gates, candidate = builder.ops("Split", (products, builder.integers(3 * size, size)), 2, axis=-1)
    gates = builder.op("Sigmoid", gates)
    entry, forget, exit_ = builder.ops("Split", (gates, builder.integers(size, size, size)), 3, axis=-1)
    added = builder.op("Mul", entry, builder.op("Tanh", candidate))
    memory = builder.op("Add", builder.op("Mul", forget, memory), added)
    return builder.op("Mul", exit_, builder.op("Tanh", memory)), memory
