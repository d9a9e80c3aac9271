"""Forwards of quantized recurrent layers and cells.

As long as the hidden state stays float, torch's own kernels run on quantized weights. With a quantized hidden state,
every layer and direction is a loop over steps (see :mod:`lightning_balq.kernels.recurrent`).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from lightning_balq import functional
from lightning_balq.functional.recurrent import Mode, Recurrence, StateGrid, initial_state
from lightning_balq.kernels.recurrent import recurrent_fake_quantize
from lightning_balq.nn.activation import ActivationQuantizer, ActivationRange
from lightning_balq.nn.inputs import map_first_tensor
from lightning_balq.nn.layers import RUNNING, STATE, LayerQuantizer, quantized_weights
from lightning_balq.nn.swap import Swapped, module_of, original_class

_LAYERS = (nn.RNN, nn.LSTM, nn.GRU)
_CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)


def state_names(layer: nn.Module) -> tuple[str, ...]:
    """Names of the hidden states of ``layer`` that can be quantized: one for each of its layers.

    None if a user's class has a forward of its own: nobody knows what it does with them.
    """
    cls = original_class(layer)
    if isinstance(layer, nn.RNNBase) and any(cls.forward is known.forward for known in _LAYERS):
        return tuple(f"state_l{index}" for index in range(layer.num_layers))
    if isinstance(layer, nn.RNNCellBase) and any(cls.forward is known.forward for known in _CELLS):
        return ("state",)
    return ()


def state_quantizer(layer: nn.Module, bits: int, range_mode: ActivationRange) -> ActivationQuantizer:
    """Quantizer of a hidden state: of [-1, 1] where tanh bounds it, as an input is where nothing does."""
    kind = getattr(layer, "mode", None) or getattr(layer, "nonlinearity", None)
    if kind in ("RNN_RELU", "relu"):
        return ActivationQuantizer(bits, range_mode, "unsigned")
    # Projected states are sums, without a bound.
    return ActivationQuantizer(bits, range_mode if getattr(layer, "proj_size", 0) else "unit", "signed")


class QuantizedRecurrent(Swapped):
    """Mixin of :class:`torch.nn.RNN`, :class:`torch.nn.LSTM` and :class:`torch.nn.GRU`, and of users' subclasses."""

    def _update_flat_weights(self) -> None:
        # Called by every forward, to collect the parameters anew.
        if RUNNING not in self.__dict__:
            super()._update_flat_weights()  # type: ignore[misc]  # "_update_flat_weights" undefined in superclass

    # A compiled model runs recurrent layers as they are, torch's own too.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Quantize the input and every weight; the hidden states too, or call the original forward."""
        layer = module_of(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        original = super().forward  # type: ignore[misc]  # "forward" undefined in superclass
        args, kwargs = map_first_tensor(lambda x: quantizer.quantize_input(layer, "input", x), original, args, kwargs)
        if RUNNING in layer.__dict__:  # a forward that calls itself
            return original(*args, **kwargs)
        with quantized_weights(layer, quantizer), _flat_weights(layer):
            if "state_l0" in quantizer.inputs and quantizer.schedule.phase != "float":
                return _forward(layer, quantizer, *args, **kwargs)
            return original(*args, **kwargs)


class QuantizedCell(Swapped):
    """Direct forward of :class:`torch.nn.RNNCell`, :class:`torch.nn.LSTMCell` and :class:`torch.nn.GRUCell`."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Take one step on quantized weights, input and hidden state; what is handed in is quantized too."""
        layer = module_of(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        if input.dim() not in (1, 2):
            raise ValueError(f"{type(layer).__name__}: expected input to be 1D or 2D, got {input.dim()}D instead")
        data = quantizer.quantize_input(layer, "input", input.reshape(-1, input.shape[-1]))
        hidden = cell = data.new_zeros(len(data), layer.hidden_size)
        if isinstance(layer, nn.LSTMCell):
            hidden, cell = (hidden, cell) if hx is None else (_as_batch(state, input) for state in hx)
        elif hx is not None:
            hidden = _as_batch(hx, input)
        weights = [
            quantizer.quantize_weight(layer, name) if name in quantizer.weights else getattr(layer, name)
            for name in ("weight_ih", "weight_hh")
        ]
        hidden, cell = _cell_step(layer, quantizer, data, hidden, cell, weights)
        if input.dim() == 1:
            hidden, cell = hidden[0], cell[0]
        return (hidden, cell) if isinstance(layer, nn.LSTMCell) else hidden


@contextmanager
def _flat_weights(layer: Any) -> Iterator[None]:
    """Within the context, torch's kernels get the weights as they read now."""
    entries = layer.__dict__
    earlier = entries["_flat_weights"]
    entries["_flat_weights"] = [getattr(layer, name) for name in layer._flat_weights_names]
    try:
        yield
    finally:
        entries["_flat_weights"] = earlier


def _as_batch(state: Tensor, input: Tensor) -> Tensor:
    if state.dim() != input.dim():
        raise ValueError(
            f"expected a state of {input.dim()} dimensions, as the input has, got shape {tuple(state.shape)}"
        )
    return state if state.dim() == 2 else state.unsqueeze(0)


def _cell_step(
    layer: Any, quantizer: LayerQuantizer, data: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """One step of a cell; its hidden state is quantized before and after it, if at all."""
    step = functools.partial(_float_step, layer, data, cell, weights)
    state = quantizer.inputs.get("state")
    if state is None or quantizer.schedule.phase == "float":
        return step(hidden)
    grid = _grid(quantizer, state, functools.partial(_first_state, step, hidden), data.device)
    raw, cell = step(initial_state(hidden, grid))
    if layer.training and torch.is_grad_enabled():
        state.observe(raw)
    return grid.quantize(raw), cell


def _float_step(layer: Any, data: Tensor, cell: Tensor, weights: list[Tensor], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What torch computes on these weights: hidden and cell state."""
    kernel, recurrent = weights
    if isinstance(layer, nn.LSTMCell):
        return torch.lstm_cell(data, (hidden, cell), kernel, recurrent, layer.bias_ih, layer.bias_hh)
    if isinstance(layer, nn.GRUCell):
        return torch.gru_cell(data, hidden, kernel, recurrent, layer.bias_ih, layer.bias_hh), cell
    run = torch.rnn_relu_cell if layer.nonlinearity == "relu" else torch.rnn_tanh_cell
    return run(data, hidden, kernel, recurrent, layer.bias_ih, layer.bias_hh), cell


@torch.no_grad()
def _first_state(step: Callable[[Tensor], tuple[Tensor, Tensor]], hidden: Tensor) -> Tensor:
    return step(hidden)[0]


def _grid(
    quantizer: LayerQuantizer, state: ActivationQuantizer, sample: Callable[[], Tensor], device: torch.device
) -> StateGrid:
    range_, signed = state.interval(sample, device)
    share = None if quantizer.schedule.phase == "quantized" else quantizer.schedule.share
    return StateGrid(state.bits, range_, signed, share)


class _Sequences(NamedTuple):
    """Input of a recurrent layer, whatever form it came in, as a packed sequence with initial states.

    Attributes:
        data: rows of all steps, shape ``(N, F)``.
        sizes: number of sequences that reach each step.
        hidden: initial hidden states, shape ``(layers * directions, B, H)``; ``None`` for zero.
        cell: initial cell states of an LSTM, likewise.
    """

    data: Tensor
    sizes: tuple[int, ...]
    hidden: Tensor | None
    cell: Tensor | None


def _forward(layer: Any, quantizer: LayerQuantizer, input: Any, hx: Any = None) -> Any:
    """What the layer's own forward does, with hidden states quantized at every step."""
    sequences = _unpack(layer, input, hx)
    # Steps run in the type of the weights: sums over a whole sequence are no matter for half precision.
    with torch.autocast(sequences.data.device.type, enabled=False):
        outputs, hidden, cell = _run_layers(layer, quantizer, sequences)
    state: Any = (hidden, cell) if layer.mode == "LSTM" else hidden
    if isinstance(input, PackedSequence):
        packed = PackedSequence(outputs, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        return packed, layer.permute_hidden(state, input.unsorted_indices)
    if input.dim() == 2:
        return outputs, (hidden[:, 0], cell[:, 0]) if layer.mode == "LSTM" else hidden[:, 0]
    outputs = torch.unflatten(outputs, 0, (len(sequences.sizes), -1))
    return outputs.transpose(0, 1) if layer.batch_first else outputs, state


def _unpack(layer: Any, input: Any, hx: Any) -> _Sequences:
    """Bring the arguments of a forward into one form, with torch's own checks."""
    order = None
    if isinstance(input, PackedSequence):
        data, sizes, order = input.data, input.batch_sizes, input.sorted_indices
        steps = tuple(sizes.tolist())
    else:
        if input.dim() not in (2, 3):
            raise ValueError(f"{layer.mode}: expected input to be 2D or 3D, got {input.dim()}D instead")
        data, sizes = input if input.dim() == 3 else input.unsqueeze(0 if layer.batch_first else 1), None
        length, batch = data.shape[:2][:: -1 if layer.batch_first else 1]
        if length == 0:
            raise ValueError(f"{layer.mode}: expected a sequence of at least one step, got shape {tuple(input.shape)}")
        steps = (batch,) * length
    states = () if hx is None else hx if layer.mode == "LSTM" else (hx,)
    if sizes is None and input.dim() == 2:
        states = tuple(state.unsqueeze(1) for state in states)
    weight = layer._flat_weights[0]
    if data.dtype != weight.dtype and torch.is_autocast_enabled(data.device.type):
        data = data.to(weight.dtype)
    states = tuple(state.to(weight.dtype) for state in states)
    checked = states or _zeros(layer, data, steps[0])
    if order is not None:
        states = tuple(state.index_select(1, order) for state in states)
    layer.check_forward_args(data, checked if layer.mode == "LSTM" else checked[0], sizes)
    if sizes is None:
        data = (data.transpose(0, 1) if layer.batch_first else data).flatten(0, 1)
    hidden, cell = (*states, None, None)[:2]
    return _Sequences(data, steps, hidden, cell)


def _zeros(layer: Any, data: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    directions = layer.num_layers * (2 if layer.bidirectional else 1)
    hidden = data.new_zeros(directions, batch, layer.proj_size or layer.hidden_size)
    return hidden, data.new_zeros(directions, batch, layer.hidden_size)


def _run_layers(layer: Any, quantizer: LayerQuantizer, sequences: _Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """States of the last layer, and hidden and cell states at the end of all layers and directions."""
    zeros = _zeros(layer, sequences.data, sequences.sizes[0])
    hidden = zeros[0] if sequences.hidden is None else sequences.hidden
    cell = zeros[1] if sequences.cell is None else sequences.cell
    data, ends = sequences.data, []
    for index in range(layer.num_layers):
        runs = [
            _Direction(layer, f"_l{index}{suffix}", sequences.sizes, bool(suffix))
            for suffix in (("", "_reverse") if layer.bidirectional else ("",))
        ]
        places = range(index * len(runs), (index + 1) * len(runs))
        jobs = [(run, data, hidden[place], cell[place]) for run, place in zip(runs, places, strict=True)]
        state = quantizer.inputs[f"state_l{index}"]
        grid = _grid(quantizer, state, functools.partial(_sample, jobs), data.device)
        results = [run(rows, initial_state(h, grid), c, grid) for run, rows, h, c in jobs]
        if layer.training and torch.is_grad_enabled():
            state.observe(_joined([result.raw for result in results]))
        data = _joined([result.states for result in results])
        if index < layer.num_layers - 1:
            data = F.dropout(data, layer.dropout, layer.training)
        ends += results
    return data, torch.stack([end.hidden for end in ends]), torch.stack([end.cell for end in ends])


class _Direction(NamedTuple):
    """One direction of one layer of a recurrent module.

    Attributes:
        layer: the module.
        suffix: ends the names of its weights.
        sizes: number of sequences that reach each step.
        reverse: whether it starts at the last step.
    """

    layer: Any
    suffix: str
    sizes: tuple[int, ...]
    reverse: bool

    def __call__(self, data: Tensor, hidden: Tensor, cell: Tensor, grid: StateGrid | None) -> Recurrence:
        """Run all steps; without a grid nothing is quantized."""
        mode: Mode = self.layer.mode
        kernel, recurrent = self._read("weight_ih"), self._read("weight_hh")
        kernel_bias, recurrent_bias = self._read("bias_ih"), self._read("bias_hh")
        assert kernel is not None and recurrent is not None
        if mode != "GRU" and kernel_bias is not None and recurrent_bias is not None:
            kernel_bias, recurrent_bias = kernel_bias + recurrent_bias, None
        run = functional.recurrent_fake_quantize if grid is None else recurrent_fake_quantize
        return run(
            mode,
            F.linear(data, kernel, kernel_bias),
            hidden,
            cell,
            recurrent,
            recurrent_bias,
            cast(StateGrid, grid),
            sizes=self.sizes,
            reverse=self.reverse,
            projection=self._read("weight_hr"),
        )

    def _read(self, name: str) -> Tensor | None:
        weight: Tensor | None = getattr(self.layer, name + self.suffix, None)
        return weight


@torch.no_grad()
def _sample(jobs: list[tuple[_Direction, Tensor, Tensor, Tensor]]) -> Tensor:
    """Hidden states of a layer as they are while none is quantized."""
    return _joined([run(data, hidden, cell, None).states for run, data, hidden, cell in jobs])


def _joined(directions: list[Tensor]) -> Tensor:
    return directions[0] if len(directions) == 1 else torch.cat(directions, dim=1)
