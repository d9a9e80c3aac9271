"""Recurrent layers whose states lie in [0, 1], so that they can be quantized without a range (He et al. 2016)."""

from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor, nn

State: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""State of a recurrent layer: that of a GRU, or the two of an LSTM; shape ``(layers, batch, units)``."""


class SigmoidCell(nn.Module, ABC):
    """One step of a recurrent layer. Its two linear layers are quantized as any others are.

    Args:
        inputs: number of inputs.
        units: number of states.
        gates: number of values that are computed for each state.
    """

    def __init__(self, inputs: int, units: int, gates: int) -> None:
        super().__init__()
        self.units = units
        self.kernel = nn.Linear(inputs, gates * units)
        self.recurrent = nn.Linear(units, gates * units)

    @abstractmethod
    def step(self, kernel: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the next state, its visible part first, from what the kernel gives for one time step."""

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return all visible states, shape ``(steps, batch, units)``, and the last state."""
        visible = []
        for kernel in self.kernel(inputs).unbind():
            state = self.step(kernel, state)
            visible.append(state[0])
        return torch.stack(visible), state


class SigmoidLSTMCell(SigmoidCell):
    r"""An LSTM whose visible state is :math:`h = o \sigma(c)` instead of :math:`o \tanh(c)`.

    .. math:: c' = \sigma(f) c + \sigma(i) \tanh(g), \quad h' = \sigma(o) \sigma(c')
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units, gates=4)

    def step(self, kernel: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, cell = state
        enter, forget, candidate, leave = (kernel + self.recurrent(hidden)).chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        return leave.sigmoid() * cell.sigmoid(), cell


class SigmoidGRUCell(SigmoidCell):
    r"""A GRU whose candidate is :math:`\sigma` instead of :math:`\tanh`.

    .. math:: h' = (1 - \sigma(z))\, \sigma(x_n + \sigma(r) h_n) + \sigma(z) h

    where :math:`x_n` is the part of the kernel and :math:`h_n` that of the recurrent layer, as in
    :class:`torch.nn.GRU`.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units, gates=3)

    def step(self, kernel: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = state
        recurrent = self.recurrent(hidden)
        gates = (kernel + recurrent)[..., : 2 * self.units].sigmoid()
        reset, keep = gates.chunk(2, dim=-1)
        candidate = kernel[..., 2 * self.units :] + reset * recurrent[..., 2 * self.units :]
        return ((1 - keep) * candidate.sigmoid() + keep * hidden,)


class SigmoidRecurrent(nn.Module, ABC):
    """Layers of cells, called as :class:`torch.nn.LSTM` and :class:`torch.nn.GRU` are; time comes first.

    Args:
        input_size: number of inputs.
        hidden_size: number of states of each layer.
        num_layers: number of layers.
        dropout: share of the states between two layers that is dropped in training.
    """

    states: int
    """Number of tensors in a state."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.units = hidden_size
        self.dropout = nn.Dropout(dropout)
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        self.cells = nn.ModuleList([self.cell(size, hidden_size) for size in sizes])

    @staticmethod
    @abstractmethod
    def cell(inputs: int, units: int) -> SigmoidCell:
        """Build the cell of a layer."""

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the states of the last layer, shape ``(steps, batch, units)``, and the last state of all layers.

        Args:
            inputs: shape ``(steps, batch, inputs)``.
            state: to start from; zeros by default.
        """
        if state is None:
            empty = inputs.new_zeros(len(self.cells), inputs.shape[1], self.units)
            parts = (empty,) * self.states
        else:
            parts = (state,) if isinstance(state, Tensor) else state
        last = []
        for layer, cell in enumerate(self.cells):
            inputs = self.dropout(inputs) if layer else inputs
            inputs, after = cell(inputs, tuple(part[layer] for part in parts))
            last.append(after)
        stacked = tuple(torch.stack(part) for part in zip(*last, strict=True))
        return inputs, stacked[0] if len(stacked) == 1 else stacked


class SigmoidLSTM(SigmoidRecurrent):
    """Layers of :class:`SigmoidLSTMCell`."""

    states = 2
    cell = SigmoidLSTMCell


class SigmoidGRU(SigmoidRecurrent):
    """Layers of :class:`SigmoidGRUCell`."""

    states = 1
    cell = SigmoidGRUCell
