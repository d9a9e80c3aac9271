"""Steps of recurrent cells, forward and back, on buffers that hold a whole sequence.

A step is a product of matrices and one pass over the values (see :mod:`lightning_balq.kernels.pointwise`).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_balq.functional.recurrent import Mode, StateGrid
from lightning_balq.kernels.pointwise import GRU, LSTM, fused, quantize_


class Carried(NamedTuple):
    """What one step hands to the next: hidden and cell state, or their gradients; each of shape ``(B, H)``."""

    hidden: Tensor
    cell: Tensor

    def first(self, size: int) -> "Carried":
        """View of the first sequences."""
        return Carried(self.hidden[:size], self.cell[:size])


class Gradients(NamedTuple):
    """Gradients of the products: with the input, shape ``(N, G * H)``; with the hidden state, likewise."""

    projected: Tensor
    recurrent: Tensor


class CellKernel(ABC):
    """Steps of one kind of cell; a buffer holds one row for each row of the packed sequence.

    Args:
        example: a tensor of the type and on the device of all others.
        grid: levels of the hidden state.
    """

    @abstractmethod
    def __init__(self, example: Tensor, grid: StateGrid) -> None: ...

    @abstractmethod
    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        """Make the buffers that the forward pass fills.

        The first is for hidden states before they are quantized, the second for hidden states after it.
        """

    @abstractmethod
    def step_(
        self, projected: Tensor, rows: tuple[Tensor, ...], state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        """Fill the rows of one step, and replace the states by those after it; takes the transposed weight."""

    @abstractmethod
    def buffers_back(self, filled: tuple[Tensor, ...], before: Tensor) -> tuple[Tensor, ...]:
        """Buffers of the backward pass: those that it fills first, then those that it reads.

        Args:
            filled: what the forward pass filled.
            before: quantized hidden state that each row started from, shape ``(N, H)``.
        """

    @abstractmethod
    def step_back_(self, by_states: Tensor, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        """Fill the rows of one step, and turn the gradients of the states after it into those before it."""

    @abstractmethod
    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        """Gradients of the products, from the buffers of the backward pass."""


class _LSTM(CellKernel):
    """:class:`torch.nn.LSTM`."""

    def __init__(self, example: Tensor, grid: StateGrid) -> None:
        self._forward_, self._backward_ = fused(LSTM, example, grid)

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        return tuple(projected.new_empty(len(projected), width * hidden_size) for width in (1, 1, 4, 1, 1))

    def step_(
        self, projected: Tensor, rows: tuple[Tensor, ...], state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        raw, states, gates, before, bounded = rows
        torch.mm(state.hidden, transposed, out=gates)
        self._forward_(projected, gates, before, bounded, raw, states, *state)

    def buffers_back(self, filled: tuple[Tensor, ...], before: Tensor) -> tuple[Tensor, ...]:
        raw, _, gates, cell, bounded = filled
        return torch.empty_like(gates), gates, cell, bounded, raw

    def step_back_(self, by_states: Tensor, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        by_gates, *known = rows
        self._backward_(*known, by_states, by_gates, *gradient)
        torch.mm(by_gates, weight, out=gradient.hidden)

    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        return Gradients(buffers[0], buffers[0])


class _GRU(CellKernel):
    """:class:`torch.nn.GRU`."""

    def __init__(self, example: Tensor, grid: StateGrid) -> None:
        self._forward_, self._backward_ = fused(GRU, example, grid)

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        return tuple(projected.new_empty(len(projected), width * hidden_size) for width in (1, 1, 2, 1, 3))

    def step_(
        self, projected: Tensor, rows: tuple[Tensor, ...], state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        raw, states, gates, candidate, product = rows
        if bias is None:
            torch.mm(state.hidden, transposed, out=product)
        else:
            torch.addmm(bias, state.hidden, transposed, out=product)
        self._forward_(projected, product, gates, candidate, raw, states, state.hidden)

    def buffers_back(self, filled: tuple[Tensor, ...], before: Tensor) -> tuple[Tensor, ...]:
        raw, _, gates, candidate, product = filled
        return torch.empty_like(product), torch.empty_like(candidate), gates, candidate, product, before, raw

    def step_back_(self, by_states: Tensor, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        by_product, by_candidate, *known = rows
        self._backward_(*known, by_states, by_product, by_candidate, gradient.hidden)
        gradient.hidden.addmm_(by_product, weight)

    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        by_product, by_candidate, *_ = buffers
        return Gradients(torch.cat([by_product[:, : -by_candidate.shape[1]], by_candidate], dim=1), by_product)


class _RNN(CellKernel):
    """:class:`torch.nn.RNN`: derivatives depend on the forward pass alone, and are computed for all steps at once."""

    def __init__(self, example: Tensor, grid: StateGrid) -> None:
        self._grid = grid

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        return torch.empty_like(projected), torch.empty_like(projected)

    def step_(
        self, projected: Tensor, rows: tuple[Tensor, ...], state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        raw, states = rows
        torch.addmm(projected, state.hidden, transposed, out=raw)
        self._activate_(raw)
        quantize_(raw, states, state.hidden, self._grid)

    @abstractmethod
    def _activate_(self, product: Tensor) -> None:
        """Turn products into hidden states."""

    def buffers_back(self, filled: tuple[Tensor, ...], before: Tensor) -> tuple[Tensor, ...]:
        raw = filled[0]
        return (self._derivative(raw).mul_(self._grid.derivative(raw)),)

    @abstractmethod
    def _derivative(self, activated: Tensor) -> Tensor:
        """Derivative of hidden states by the products they were made of."""

    def step_back_(self, by_states: Tensor, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        (by_product,) = rows
        gradient.hidden.add_(by_states)
        torch.mm(by_product.mul_(gradient.hidden), weight, out=gradient.hidden)

    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        return Gradients(buffers[0], buffers[0])


class _TanhRNN(_RNN):
    def _activate_(self, product: Tensor) -> None:
        product.tanh_()

    def _derivative(self, activated: Tensor) -> Tensor:
        return 1 - activated.square()


class _ReluRNN(_RNN):
    def _activate_(self, product: Tensor) -> None:
        product.relu_()

    def _derivative(self, activated: Tensor) -> Tensor:
        return (activated > 0).to(activated.dtype)


KERNELS: dict[Mode, type[CellKernel]] = {"LSTM": _LSTM, "GRU": _GRU, "RNN_TANH": _TanhRNN, "RNN_RELU": _ReluRNN}
