r"""Recurrent layers whose hidden state is quantized at every step, written as a plain loop.

The hidden state :math:`h_t`, which every step multiplies by the recurrent weights and which the layer returns, takes
``2**bits`` levels. The cell state of an LSTM, which no weight multiplies, stays as it is. Everything has the shape of
packed sequences: the rows of all steps one after the other, ``sizes[t]`` of them for step ``t``, never more than for
the step before.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_balq.functional.activation import activation_fake_quantize
from lightning_balq.functional.grid import straight_through

Mode = Literal["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]
"""Kinds of cells, as :class:`torch.nn.RNNBase` calls them."""


class StateGrid(NamedTuple):
    """The levels of a hidden state, those of :func:`lightning_balq.functional.activation_fake_quantize`.

    Attributes:
        bits: width of a code in bits, 1 to 8.
        range: largest level, >= 0; scalar tensor.
        signed: whether the smallest level is ``-range`` instead of 0; boolean scalar tensor.
        share: how much of the state is quantized, 0 to 1, the rest being float; scalar tensor, ``None`` for all of it.
    """

    bits: int
    range: Tensor
    signed: Tensor
    share: Tensor | None = None

    def quantize(self, state: Tensor) -> Tensor:
        """Quantize a state; straight-through gradient within the range."""
        return self.mix(state, activation_fake_quantize(state, self.bits, range=self.range, signed=self.signed))

    def mix(self, state: Tensor, levels: Tensor) -> Tensor:
        """Return ``(1 - share) * state + share * levels``."""
        if self.share is None:
            return levels
        share = self.share.to(state.dtype)
        return state * (1 - share) + levels * share

    def derivative(self, state: Tensor) -> Tensor:
        """Straight-through derivative of the quantized state by the state."""
        values = state.to(torch.float32)  # else bounds are rounded to the type of the state
        inside = (values >= torch.where(self.signed, -self.range, 0.0)) & (values <= self.range)
        return self.mix(torch.ones_like(state), inside.to(state.dtype))


class Recurrence(NamedTuple):
    """What a layer computes in one direction, for N rows of B sequences.

    Attributes:
        states: hidden states of all steps, quantized, shape ``(N, H)``.
        hidden: hidden state of each sequence after its last step, shape ``(B, H)``.
        cell: cell state of each sequence after its last step, shape ``(B, H)``; only an LSTM changes it.
        raw: ``states`` before they were quantized, without gradient.
    """

    states: Tensor
    hidden: Tensor
    cell: Tensor
    raw: Tensor


def recurrent_fake_quantize(
    mode: Mode,
    projected: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: StateGrid | None,
    *,
    sizes: Sequence[int],
    reverse: bool = False,
    projection: Tensor | None = None,
) -> Recurrence:
    r"""Run one direction of a recurrent layer, quantizing its hidden state after every step.

    .. math:: h_t = Q(\mathrm{step}(x_t W_{ih}^T + b,\ h_{t-1},\ c_{t-1}))

    with the step of :class:`torch.nn.RNN`, :class:`torch.nn.LSTM` or :class:`torch.nn.GRU`. The gradient is that of
    the steps, with the straight-through estimator for :math:`Q`: the identity within the range, zero outside.

    Args:
        mode: kind of cell.
        projected: input-hidden products of all steps with every bias that is simply added: ``b_ih + b_hh``, but
            ``b_ih`` for a GRU; shape ``(N, G * H)`` with G = 1, 4 (LSTM) or 3 (GRU).
        hidden: initial hidden state, as the first step is to use it, shape ``(B, H)``, or ``(B, P)`` with a projection.
        cell: initial cell state, shape ``(B, H)``; used by an LSTM alone.
        weight: hidden-hidden weight, shape ``(G * H, H)``, or ``(G * H, P)`` with a projection.
        bias: hidden-hidden bias of a GRU, shape ``(3 * H,)``, else ``None``.
        grid: levels of the hidden state; ``None`` leaves it float.
        sizes: number of sequences that reach each step; their sum is N, the first is B.
        reverse: walk from the last step to the first.
        projection: weight that maps the hidden state of an LSTM to a smaller one, shape ``(P, H)``.

    Returns:
        Hidden states of all steps and the last ones.

    Example:
        >>> grid = StateGrid(2, torch.tensor(0.75), torch.tensor(True))
        >>> projected, zero = torch.tensor([[0.3], [0.8], [-2.0]]), torch.zeros(1, 1)
        >>> recurrent_fake_quantize("RNN_TANH", projected, zero, zero, torch.eye(1), None, grid, sizes=[1, 1, 1]).states
        tensor([[ 0.2500],
                [ 0.7500],
                [-0.7500]])
    """
    step = STEPS[mode]
    states: dict[int, Tensor] = {}
    raws: dict[int, Tensor] = {}
    for first, size in step_rows(sizes, reverse):
        now, memory = step(projected[first : first + size], hidden[:size], cell[:size], weight, bias)
        raws[first] = now if projection is None else F.linear(now, projection)
        states[first] = raws[first] if grid is None else grid.quantize(raws[first])
        hidden, cell = _over_first_rows(hidden, states[first]), _over_first_rows(cell, memory)
    ordered = sorted(states)
    raw = torch.cat([raws[first].detach() for first in ordered])
    return Recurrence(torch.cat([states[first] for first in ordered]), hidden, cell, raw)


def initial_state(state: Tensor, grid: StateGrid) -> Tensor:
    """Quantize a hidden state that is handed in; gradient: the identity.

    A state carried over from before is on the levels, and stays where it is. Zero stays zero: there is no state.

    Args:
        state: hidden state, any shape.
        grid: its levels.

    Returns:
        Levels or zero, in the shape of ``state``.

    Example:
        >>> grid = StateGrid(2, torch.tensor(1.5), torch.tensor(True))
        >>> initial_state(torch.tensor([0.0, 0.4, -2.0]), grid)
        tensor([ 0.0000,  0.5000, -1.5000])
    """
    return straight_through(state, grid.quantize(state.detach()))


def step_rows(sizes: Sequence[int], reverse: bool) -> list[tuple[int, int]]:
    """First row and number of rows of each step, in the order in which the steps are taken.

    Example:
        >>> step_rows([3, 2, 2], reverse=True)
        [(5, 2), (3, 2), (0, 3)]
    """
    rows, first = [], 0
    for size in sizes:
        rows.append((first, size))
        first += size
    return rows[::-1] if reverse else rows


def lstm_step(
    projected: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of :class:`torch.nn.LSTM`: the hidden state, not quantized, and the cell state."""
    gates = torch.addmm(projected, hidden, weight.t())
    entry, forget, candidate, exit_ = gates.chunk(4, dim=1)
    cell = torch.addcmul(forget.sigmoid() * cell, entry.sigmoid(), candidate.tanh())
    return exit_.sigmoid() * cell.tanh(), cell


def gru_step(
    projected: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of :class:`torch.nn.GRU`: the hidden state, not quantized; the cell state passes."""
    reset, update, candidate = projected.chunk(3, dim=1)
    recurrent = F.linear(hidden, weight, bias).chunk(3, dim=1)
    gate = (reset + recurrent[0]).sigmoid()
    new = torch.addcmul(candidate, gate, recurrent[2]).tanh()
    return torch.lerp(new, hidden, (update + recurrent[1]).sigmoid()), cell


def tanh_step(
    projected: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of :class:`torch.nn.RNN`: the hidden state, not quantized; the cell state passes."""
    return torch.addmm(projected, hidden, weight.t()).tanh(), cell


def relu_step(
    projected: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of :class:`torch.nn.RNN` with ``nonlinearity="relu"``, likewise."""
    return torch.addmm(projected, hidden, weight.t()).relu(), cell


Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
STEPS: dict[Mode, Step] = {"LSTM": lstm_step, "GRU": gru_step, "RNN_TANH": tanh_step, "RNN_RELU": relu_step}


def _over_first_rows(state: Tensor, rows: Tensor) -> Tensor:
    """Put rows in place of the first ones of a state; sequences that ended, or have not begun, keep theirs."""
    return rows if len(rows) == len(state) else torch.cat([rows, state[len(rows) :]])
