"""Recurrent layers with a quantized hidden state, differentiated by hand."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_balq import functional
from lightning_balq.functional._tracing import has_memory, has_tangent, is_traced
from lightning_balq.functional.recurrent import Mode, Recurrence, StateGrid, step_rows
from lightning_balq.kernels.cells import KERNELS, Carried


def recurrent_fake_quantize(
    mode: Mode,
    projected: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: StateGrid,
    *,
    sizes: Sequence[int],
    reverse: bool = False,
    projection: Tensor | None = None,
) -> Recurrence:
    """Return what :func:`lightning_balq.functional.recurrent_fake_quantize` does, in less time.

    States are those of the plain loop unless one lies within rounding of the border between two levels, gradients equal
    up to the order of sums. Layers with a projection and code that is being traced run the plain loop; so does whatever
    is differentiated twice, from the first gradient on.

    Example:
        >>> grid = StateGrid(2, torch.tensor(0.75), torch.tensor(True))
        >>> projected, zero = torch.tensor([[0.3], [0.8], [-2.0]]), torch.zeros(1, 1)
        >>> recurrent_fake_quantize("RNN_TANH", projected, zero, zero, torch.eye(1), None, grid, sizes=[1, 1, 1]).hidden
        tensor([[-0.7500]])
    """
    given = [tensor for tensor in (projected, hidden, cell, weight, bias) if tensor is not None]
    if projection is not None or is_traced() or not all(has_memory(t) and not has_tangent(t) for t in given):
        return functional.recurrent_fake_quantize(
            mode, projected, hidden, cell, weight, bias, grid, sizes=sizes, reverse=reverse, projection=projection
        )
    arguments = (projected, hidden, cell, weight, bias, mode, grid, tuple(sizes), reverse)
    return Recurrence(*_Recurrence.apply(*arguments))  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _Recurrence(torch.autograd.Function):
    """One direction of a recurrent layer."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mode: Mode,
        grid: StateGrid,
        sizes: tuple[int, ...],
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kernel = KERNELS[mode](projected, grid)
        buffers = kernel.buffers(projected, weight.shape[1])
        state = Carried(*(given.clone(memory_format=torch.contiguous_format) for given in (hidden, cell)))
        transposed = weight.t().contiguous()  # once, for products that run through it row by row
        for given, *rows in _walk(sizes, reverse, projected.contiguous(), *buffers):
            kernel.step_(given, tuple(rows), state.first(len(given)), transposed, bias)
        raw, states, *_ = buffers
        ctx.save_for_backward(projected, hidden, cell, weight, bias, *buffers)
        ctx.arguments = mode, grid, sizes, reverse
        ctx.mark_non_differentiable(raw)
        return states, *state, raw

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_states, by_hidden, by_cell, _ = gradients
        if torch.is_grad_enabled():
            return (*_differentiable_gradients(ctx, by_states, by_hidden, by_cell), None, None, None, None)
        _, hidden, _, weight, bias, *filled = ctx.saved_tensors
        mode, grid, sizes, reverse = ctx.arguments
        kernel = KERNELS[mode](weight, grid)
        before = _before(filled[1], hidden, step_rows(sizes, reverse))
        buffers = kernel.buffers_back(tuple(filled), before)
        gradient = Carried(*(given.clone(memory_format=torch.contiguous_format) for given in (by_hidden, by_cell)))
        for given, *rows in _walk(sizes, not reverse, by_states.contiguous(), *buffers):
            kernel.step_back_(given, tuple(rows), gradient.first(len(given)), weight)
        by_projected, by_recurrent = kernel.gradients(buffers)
        by_weight = by_recurrent.t() @ before
        by_bias = None if bias is None else by_recurrent.sum(0)
        return by_projected, *gradient, by_weight, by_bias, None, None, None, None


def _walk(sizes: tuple[int, ...], reverse: bool, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of each step, of all tensors."""
    steps = list(zip(*(torch.split(tensor, list(sizes)) for tensor in tensors), strict=True))
    return reversed(steps) if reverse else iter(steps)


def _before(after: Tensor, initial: Tensor, order: list[tuple[int, int]]) -> Tensor:
    """States that each row started from, given those after it and those at the very start."""
    pieces: dict[int, Tensor] = {}
    state = initial
    for first, size in order:
        pieces[first] = state[:size]
        rows = after[first : first + size]
        state = rows if size == len(state) else torch.cat([rows, state[size:]])
    return torch.cat([pieces[first] for first in sorted(pieces)])


def _differentiable_gradients(ctx: Any, *gradients: Tensor) -> list[Tensor | None]:
    """Gradients that can be differentiated again, from the plain loop."""
    mode, grid, sizes, reverse = ctx.arguments
    projected, hidden, cell, weight, bias = given = ctx.saved_tensors[:5]
    again = functional.recurrent_fake_quantize(
        mode, projected, hidden, cell, weight, bias, grid, sizes=sizes, reverse=reverse
    )
    outputs = [output for output in again[:3] if output.requires_grad]
    seen = [gradient for output, gradient in zip(again[:3], gradients, strict=True) if output.requires_grad]
    wanted = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, seen, create_graph=True, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in given]
