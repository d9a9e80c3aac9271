"""What steps of recurrent cells do beside products of matrices, value by value and in place.

Every function reads and writes rows of buffers. The forms below are right everywhere; :func:`fused` finds one that
makes a single pass over the values.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_balq.functional.recurrent import StateGrid
from lightning_balq.kernels import cpu, gpu
from lightning_balq.kernels.activations import activation_fake_quantize

Pointwise: TypeAlias = Callable[..., None]

_sigmoid_gradient = torch.ops.aten.sigmoid_backward
_tanh_gradient = torch.ops.aten.tanh_backward


def lstm_forward_(
    projected: Tensor,
    gates: Tensor,
    before: Tensor,
    bounded: Tensor,
    raw: Tensor,
    states: Tensor,
    hidden: Tensor,
    cell: Tensor,
    grid: StateGrid,
) -> None:
    """Finish one step of an LSTM.

    Args:
        projected: input products, shape ``(B, 4 * H)``; read.
        gates: recurrent products; becomes the input, forget, candidate and output gates.
        before: becomes the cell state before the step, shape ``(B, H)``.
        bounded: becomes the hyperbolic tangent of the cell state after it.
        raw: becomes the hidden state.
        states: becomes the quantized hidden state.
        hidden: likewise.
        cell: cell state before the step; becomes that after it.
        grid: levels of the hidden state.
    """
    gates.add_(projected)
    entry, forget, candidate, exit_ = gates.chunk(4, dim=1)
    entry.sigmoid_()
    forget.sigmoid_()
    candidate.tanh_()
    exit_.sigmoid_()
    before.copy_(cell)
    cell.copy_(torch.addcmul(forget * before, entry, candidate))
    bounded.copy_(cell.tanh())
    raw.copy_(exit_ * bounded)
    quantize_(raw, states, hidden, grid)


def lstm_backward_(
    gates: Tensor,
    before: Tensor,
    bounded: Tensor,
    raw: Tensor,
    by_states: Tensor,
    by_gates: Tensor,
    by_hidden: Tensor,
    by_cell: Tensor,
    grid: StateGrid,
) -> None:
    """Begin one step back through an LSTM.

    Args:
        gates: what :func:`lstm_forward_` left; read, as are ``before``, ``bounded`` and ``raw``.
        before: cell state before the step.
        bounded: hyperbolic tangent of the cell state after it.
        raw: hidden state before it was quantized.
        by_states: gradient of the quantized hidden state as the layer returns it; read.
        by_gates: becomes the gradient of the products.
        by_hidden: gradient of the quantized hidden state as the next step uses it; read.
        by_cell: gradient of the cell state after the step; becomes that before it.
        grid: levels of the hidden state.
    """
    entry, forget, candidate, exit_ = gates.chunk(4, dim=1)
    parts = by_gates.chunk(4, dim=1)
    hidden = (by_hidden + by_states) * grid.derivative(raw)
    parts[3].copy_(_sigmoid_gradient(hidden * bounded, exit_))
    state = by_cell + _tanh_gradient(hidden * exit_, bounded)
    parts[0].copy_(_sigmoid_gradient(state * candidate, entry))
    parts[1].copy_(_sigmoid_gradient(state * before, forget))
    parts[2].copy_(_tanh_gradient(state * entry, candidate))
    by_cell.copy_(state * forget)


def gru_forward_(
    projected: Tensor,
    product: Tensor,
    gates: Tensor,
    candidate: Tensor,
    raw: Tensor,
    states: Tensor,
    hidden: Tensor,
    grid: StateGrid,
) -> None:
    """Finish one step of a GRU.

    Args:
        projected: input products, shape ``(B, 3 * H)``; read.
        product: recurrent products with their bias, shape ``(B, 3 * H)``; read.
        gates: becomes the reset and update gates, shape ``(B, 2 * H)``.
        candidate: becomes the candidate, shape ``(B, H)``.
        raw: becomes the hidden state.
        states: becomes the quantized hidden state.
        hidden: quantized hidden state before the step; becomes that after it.
        grid: levels of the hidden state.
    """
    width = hidden.shape[1]
    torch.add(projected[:, : 2 * width], product[:, : 2 * width], out=gates)
    gates.sigmoid_()
    candidate.copy_(torch.addcmul(projected[:, 2 * width :], gates[:, :width], product[:, 2 * width :]).tanh())
    raw.copy_(torch.lerp(candidate, hidden, gates[:, width:]))
    quantize_(raw, states, hidden, grid)


def gru_backward_(
    gates: Tensor,
    candidate: Tensor,
    product: Tensor,
    before: Tensor,
    raw: Tensor,
    by_states: Tensor,
    by_product: Tensor,
    by_candidate: Tensor,
    by_hidden: Tensor,
    grid: StateGrid,
) -> None:
    """Begin one step back through a GRU.

    Args:
        gates: what :func:`gru_forward_` left; read, as are ``candidate``, ``product``, ``before`` and ``raw``.
        candidate: the candidate.
        product: recurrent products.
        before: quantized hidden state before the step.
        raw: hidden state before it was quantized.
        by_states: gradient of the quantized hidden state as the layer returns it; read.
        by_product: becomes the gradient of the recurrent products.
        by_candidate: becomes the gradient of the input product of the candidate; those of the gates are the same.
        by_hidden: gradient of the quantized hidden state as the next step uses it; becomes the part of that of
            ``before`` that needs no product.
        grid: levels of the hidden state.
    """
    width = before.shape[1]
    reset, update = gates.chunk(2, dim=1)
    hidden = (by_hidden + by_states) * grid.derivative(raw)
    by_candidate.copy_(_tanh_gradient((1 - update) * hidden, candidate))
    by_product[:, :width].copy_(_sigmoid_gradient(by_candidate * product[:, 2 * width :], reset))
    by_product[:, width : 2 * width].copy_(_sigmoid_gradient((before - candidate) * hidden, update))
    by_product[:, 2 * width :].copy_(by_candidate * reset)
    by_hidden.copy_(update * hidden)


def quantize_(raw: Tensor, states: Tensor, hidden: Tensor, grid: StateGrid) -> None:
    """Quantize a hidden state ``raw``; ``states`` and ``hidden`` become the result."""
    levels, _ = activation_fake_quantize(raw, grid.bits, range=grid.range, signed=grid.signed)
    states.copy_(grid.mix(raw, levels))
    hidden.copy_(states)


def fused(functions: tuple[Pointwise, Pointwise], example: Tensor, grid: StateGrid) -> tuple[Pointwise, Pointwise]:
    """Return what does the same as two of the functions above, forward and back, each in one pass where possible.

    Args:
        functions: those of one kind of cell.
        example: the functions returned take contiguous tensors of its type and on its device.
        grid: levels of the hidden state; the functions returned know it.
    """
    if example.is_cpu and functions == LSTM:
        steps = cpu.lstm_steps(example, grid)
        if steps is not None:
            return steps
    if gpu.activation_kernels(example) is not None:
        functions = compiled(functions[0]), compiled(functions[1])
    return functools.partial(functions[0], grid=grid), functools.partial(functions[1], grid=grid)


LSTM = lstm_forward_, lstm_backward_
GRU = gru_forward_, gru_backward_


@functools.cache
def compiled(function: Pointwise, backend: str = "inductor") -> Pointwise:
    """Compile one of the functions above at its first call, once for all shapes; if that fails, warn and run it."""
    quick: Pointwise | None = torch.compile(function, dynamic=True, fullgraph=True, backend=backend)

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        nonlocal quick
        if quick is not None:
            try:
                return quick(*arguments, **options)
            except Exception as error:  # torch names no common class for what a compiler can go wrong with
                quick = None
                warnings.warn(
                    f"lightning_balq runs steps of recurrent layers operation by operation, and slower: "
                    f"{function.__name__} could not be compiled ({error})",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return function(*arguments, **options)

    return run
