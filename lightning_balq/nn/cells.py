"""Forward of quantized recurrent cells."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_balq.functional.recurrent import initial_state
from lightning_balq.nn.layers import STATE, LayerQuantizer
from lightning_balq.nn.learned import Learning
from lightning_balq.nn.states import state_grid
from lightning_balq.nn.swap import module_of


class QuantizedCell(Learning):
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
    grid = state_grid(quantizer, state, functools.partial(_first_state, step, hidden), data.device)
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
