"""Steps of recurrent cells, forward and back, on buffers that hold a whole sequence.

A step is a product of matrices and one pass over the values (see :mod:`lightning_balq.kernels.pointwise`).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_balq.functional.recurrent import Mode
from lightning_balq.kernels.pointwise import fused, gru_backward_, gru_forward_, lstm_backward_, lstm_forward_


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
    """

    @abstractmethod
    def __init__(self, example: Tensor) -> None: ...

    @abstractmethod
    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        """Make the buffers that the forward pass fills; the first takes hidden states before they are quantized."""

    @abstractmethod
    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        """Fill the rows of one step, and replace the cell state; takes the transposed weight."""

    @abstractmethod
    def buffers_back(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        """Buffers of the backward pass: those that it fills first, then those that it reads.

        Args:
            filled: what the forward pass filled.
            before: states that each row started from, shape ``(N, H)``.
            passed: derivative of the quantized hidden state by the hidden state, shape ``(N, H)``.
        """

    @abstractmethod
    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        """Fill the rows of one step, and turn the gradients of the states after it into those before it."""

    @abstractmethod
    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        """Gradients of the products, from the buffers of the backward pass."""


class _LSTM(CellKernel):
    """:class:`torch.nn.LSTM`."""

    def __init__(self, example: Tensor) -> None:
        self._forward_ = fused(lstm_forward_, example)
        self._backward_ = fused(lstm_backward_, example)

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        rows = (len(projected), hidden_size)
        return tuple(projected.new_empty(shape) for shape in (rows, projected.shape, rows, rows))

    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        raw, gates, cell, bounded = rows
        torch.mm(state.hidden, transposed, out=gates)
        self._forward_(projected, state.cell, gates, cell, bounded, raw)
        state.cell.copy_(cell)

    def buffers_back(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        _, gates, _, bounded = filled
        return torch.empty_like(gates), gates, before.cell, bounded, passed

    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        by_gates, *known = rows
        self._backward_(*known, gradient.hidden, gradient.cell, by_gates)
        torch.mm(by_gates, weight, out=gradient.hidden)

    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        return Gradients(buffers[0], buffers[0])


class _GRU(CellKernel):
    """:class:`torch.nn.GRU`."""

    def __init__(self, example: Tensor) -> None:
        self._forward_ = fused(gru_forward_, example)
        self._backward_ = fused(gru_backward_, example)

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        return tuple(projected.new_empty(len(projected), width * hidden_size) for width in (1, 2, 1, 3))

    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        raw, gates, candidate, product = rows
        if bias is None:
            torch.mm(state.hidden, transposed, out=product)
        else:
            torch.addmm(bias, state.hidden, transposed, out=product)
        self._forward_(projected, product, state.hidden, gates, candidate, raw)

    def buffers_back(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        _, gates, candidate, product = filled
        by_product, by_candidate = torch.empty_like(product), torch.empty_like(candidate)
        return by_product, by_candidate, gates, candidate, product, before.hidden, passed

    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        by_product, by_candidate, *known = rows
        self._backward_(*known, gradient.hidden, by_product, by_candidate)
        gradient.hidden.addmm_(by_product, weight)

    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        by_product, by_candidate, *_ = buffers
        return Gradients(torch.cat([by_product[:, : -by_candidate.shape[1]], by_candidate], dim=1), by_product)


class _RNN(CellKernel):
    """:class:`torch.nn.RNN`: derivatives depend on the forward pass alone, and are computed for all steps at once."""

    def __init__(self, example: Tensor) -> None: ...

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        return (torch.empty_like(projected),)

    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        (raw,) = rows
        torch.addmm(projected, state.hidden, transposed, out=raw)
        self._activate_(raw)

    @abstractmethod
    def _activate_(self, product: Tensor) -> None:
        """Turn products into hidden states."""

    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        (by_product,) = rows
        torch.mm(by_product.mul_(gradient.hidden), weight, out=gradient.hidden)

    def gradients(self, buffers: tuple[Tensor, ...]) -> Gradients:
        return Gradients(buffers[0], buffers[0])


class _TanhRNN(_RNN):
    def _activate_(self, product: Tensor) -> None:
        product.tanh_()

    def buffers_back(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        return (torch.ops.aten.tanh_backward(passed, filled[0]),)


class _ReluRNN(_RNN):
    def _activate_(self, product: Tensor) -> None:
        product.relu_()

    def buffers_back(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        return (passed * (filled[0] > 0),)


KERNELS: dict[Mode, type[CellKernel]] = {"LSTM": _LSTM, "GRU": _GRU, "RNN_TANH": _TanhRNN, "RNN_RELU": _ReluRNN}
