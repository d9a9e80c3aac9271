"""Steps of recurrent cells that write into buffers of a whole sequence, and the derivatives that they leave behind.

A step of the backward pass is linear in the gradient of the hidden state (and of the cell state). Its factors depend on
the forward pass alone, so they are computed for all steps at once, and a step is left with few operations and one
product of matrices.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_balq.functional.recurrent import Mode

_sigmoid_gradient = torch.ops.aten.sigmoid_backward
_tanh_gradient = torch.ops.aten.tanh_backward


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
    """Steps of one kind of cell. Buffers hold one row for each row of the packed sequence."""

    @abstractmethod
    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        """Make the buffers that the forward pass fills; the first takes hidden states before they are quantized."""

    def parts(self, buffers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Views of the buffers as :meth:`step_` needs them, so that it need not make its own."""
        return buffers

    @abstractmethod
    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        """Fill the rows of one step, and replace the cell state; takes the transposed weight."""

    @abstractmethod
    def factors(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        """Factors of the backward steps.

        Args:
            filled: what the forward pass filled.
            before: states that each row started from, shape ``(N, H)``.
            passed: derivative of the quantized hidden state by the hidden state, shape ``(N, H)``.
        """

    @abstractmethod
    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        """Turn the gradients of the states after a step into those before it, and factors into gradients."""

    @abstractmethod
    def gradients(self, factors: tuple[Tensor, ...]) -> Gradients:
        """Gradients of the products, from what all steps back made of the factors."""


class _LSTM(CellKernel):
    """:class:`torch.nn.LSTM`; buffers: hidden state, gates (input, forget, candidate, output), cell state, its tanh."""

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        rows = (len(projected), hidden_size)
        return tuple(projected.new_empty(shape) for shape in (rows, projected.shape, rows, rows))

    def parts(self, buffers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gates = buffers[1]
        return (*buffers, gates[:, : gates.shape[1] // 2], *gates.chunk(4, dim=1))

    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        raw, gates, cell, bounded, entry_and_forget, entry, forget, candidate, exit_ = rows
        torch.addmm(projected, state.hidden, transposed, out=gates)
        entry_and_forget.sigmoid_()
        candidate.tanh_()
        exit_.sigmoid_()
        torch.mul(forget, state.cell, out=cell).addcmul_(entry, candidate)
        state.cell.copy_(cell)
        torch.mul(exit_, torch.tanh(cell, out=bounded), out=raw)

    def factors(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        _, gates, _, bounded = filled
        entry, forget, candidate, exit_ = gates.chunk(4, dim=1)
        by_gate = torch.empty_like(gates)
        parts = by_gate.chunk(4, dim=1)
        torch.mul(_sigmoid_gradient(candidate, entry), 1, out=parts[0])
        torch.mul(_sigmoid_gradient(before.cell, forget), 1, out=parts[1])
        torch.mul(_tanh_gradient(entry, candidate), 1, out=parts[2])
        torch.mul(_sigmoid_gradient(bounded, exit_), passed, out=parts[3])
        return by_gate, _tanh_gradient(exit_ * passed, bounded), forget

    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        by_gate, by_cell, forget = rows
        hidden_size = gradient.cell.shape[1]
        by_gate[:, 3 * hidden_size :].mul_(gradient.hidden)
        gradient.cell.addcmul_(gradient.hidden, by_cell)
        by_gate[:, : 3 * hidden_size].view(-1, 3, hidden_size).mul_(gradient.cell[:, None])
        gradient.cell.mul_(forget)
        torch.mm(by_gate, weight, out=gradient.hidden)

    def gradients(self, factors: tuple[Tensor, ...]) -> Gradients:
        return Gradients(factors[0], factors[0])


class _GRU(CellKernel):
    """:class:`torch.nn.GRU`; buffers: hidden state, gates (reset, update), candidate, its recurrent product."""

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        return tuple(projected.new_empty(len(projected), width * hidden_size) for width in (1, 2, 1, 1))

    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        raw, gates, candidate, product = rows
        width = raw.shape[1]
        recurrent = state.hidden @ transposed if bias is None else torch.addmm(bias, state.hidden, transposed)
        torch.add(projected[:, : 2 * width], recurrent[:, : 2 * width], out=gates).sigmoid_()
        product.copy_(recurrent[:, 2 * width :])
        torch.addcmul(projected[:, 2 * width :], gates[:, :width], product, out=candidate).tanh_()
        torch.lerp(candidate, state.hidden, gates[:, width:], out=raw)

    def factors(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        _, gates, candidate, product = filled
        reset, update = gates.chunk(2, dim=1)
        by_candidate = _tanh_gradient((1 - update) * passed, candidate)
        by_reset = _sigmoid_gradient(by_candidate * product, reset)
        by_update = _sigmoid_gradient((before.hidden - candidate) * passed, update)
        by_gate = torch.cat([by_reset, by_update, by_candidate * reset], dim=1)
        return by_gate, by_candidate, update * passed

    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        by_gate, by_candidate, kept = rows
        by_candidate.mul_(gradient.hidden)
        by_gate.view(-1, 3, gradient.hidden.shape[1]).mul_(gradient.hidden[:, None])
        gradient.hidden.mul_(kept).addmm_(by_gate, weight)

    def gradients(self, factors: tuple[Tensor, ...]) -> Gradients:
        by_gate, by_candidate, _ = factors
        return Gradients(torch.cat([by_gate[:, : -by_candidate.shape[1]], by_candidate], dim=1), by_gate)


class _RNN(CellKernel):
    """:class:`torch.nn.RNN`; buffer: hidden state."""

    def __init__(self, mode: Mode) -> None:
        self.bounded = mode == "RNN_TANH"

    def buffers(self, projected: Tensor, hidden_size: int) -> tuple[Tensor, ...]:
        return (torch.empty_like(projected),)

    def step_(
        self, rows: tuple[Tensor, ...], projected: Tensor, state: Carried, transposed: Tensor, bias: Tensor | None
    ) -> None:
        (raw,) = rows
        torch.addmm(projected, state.hidden, transposed, out=raw)
        raw.tanh_() if self.bounded else raw.relu_()

    def factors(self, filled: tuple[Tensor, ...], before: Carried, passed: Tensor) -> tuple[Tensor, ...]:
        (raw,) = filled
        return (_tanh_gradient(passed, raw) if self.bounded else passed * (raw > 0),)

    def step_back_(self, rows: tuple[Tensor, ...], gradient: Carried, weight: Tensor) -> None:
        (by_product,) = rows
        torch.mm(by_product.mul_(gradient.hidden), weight, out=gradient.hidden)

    def gradients(self, factors: tuple[Tensor, ...]) -> Gradients:
        return Gradients(factors[0], factors[0])


KERNELS: dict[Mode, CellKernel] = {
    "LSTM": _LSTM(),
    "GRU": _GRU(),
    "RNN_TANH": _RNN("RNN_TANH"),
    "RNN_RELU": _RNN("RNN_RELU"),
}
