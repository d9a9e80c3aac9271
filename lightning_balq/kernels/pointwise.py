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

from lightning_balq.kernels import cpu, gpu

Pointwise: TypeAlias = Callable[..., None]

_sigmoid_gradient = torch.ops.aten.sigmoid_backward
_tanh_gradient = torch.ops.aten.tanh_backward


def lstm_forward_(
    projected: Tensor, before: Tensor, gates: Tensor, cell: Tensor, bounded: Tensor, hidden: Tensor
) -> None:
    """Finish one step of an LSTM.

    Args:
        projected: input products, shape ``(B, 4 * H)``; read.
        before: cell state before the step, shape ``(B, H)``; read.
        gates: recurrent products; becomes the input, forget, candidate and output gates.
        cell: becomes the cell state.
        bounded: becomes its hyperbolic tangent.
        hidden: becomes the hidden state.
    """
    gates.add_(projected)
    entry, forget, candidate, exit_ = gates.chunk(4, dim=1)
    entry.sigmoid_()
    forget.sigmoid_()
    candidate.tanh_()
    exit_.sigmoid_()
    cell.copy_(torch.addcmul(forget * before, entry, candidate))
    bounded.copy_(cell.tanh())
    hidden.copy_(exit_ * bounded)


def lstm_backward_(
    gates: Tensor, before: Tensor, bounded: Tensor, passed: Tensor, by_hidden: Tensor, by_cell: Tensor, by_gates: Tensor
) -> None:
    """Begin one step back through an LSTM.

    Args:
        gates: what :func:`lstm_forward_` left; read, as are ``before`` and ``bounded``.
        before: cell state before the step.
        bounded: hyperbolic tangent of the cell state after it.
        passed: derivative of the quantized hidden state by the hidden state; read.
        by_hidden: gradient of the quantized hidden state; read.
        by_cell: gradient of the cell state after the step; becomes that before it.
        by_gates: becomes the gradient of the products.
    """
    entry, forget, candidate, exit_ = gates.chunk(4, dim=1)
    parts = by_gates.chunk(4, dim=1)
    hidden = by_hidden * passed
    parts[3].copy_(_sigmoid_gradient(hidden * bounded, exit_))
    state = by_cell + _tanh_gradient(hidden * exit_, bounded)
    parts[0].copy_(_sigmoid_gradient(state * candidate, entry))
    parts[1].copy_(_sigmoid_gradient(state * before, forget))
    parts[2].copy_(_tanh_gradient(state * entry, candidate))
    by_cell.copy_(state * forget)


def gru_forward_(
    projected: Tensor, product: Tensor, before: Tensor, gates: Tensor, candidate: Tensor, hidden: Tensor
) -> None:
    """Finish one step of a GRU.

    Args:
        projected: input products, shape ``(B, 3 * H)``; read.
        product: recurrent products with their bias, shape ``(B, 3 * H)``; read.
        before: hidden state before the step, shape ``(B, H)``; read.
        gates: becomes the reset and update gates, shape ``(B, 2 * H)``.
        candidate: becomes the candidate.
        hidden: becomes the hidden state.
    """
    width = before.shape[1]
    torch.add(projected[:, : 2 * width], product[:, : 2 * width], out=gates)
    gates.sigmoid_()
    candidate.copy_(torch.addcmul(projected[:, 2 * width :], gates[:, :width], product[:, 2 * width :]).tanh())
    hidden.copy_(torch.lerp(candidate, before, gates[:, width:]))


def gru_backward_(
    gates: Tensor,
    candidate: Tensor,
    product: Tensor,
    before: Tensor,
    passed: Tensor,
    by_hidden: Tensor,
    by_product: Tensor,
    by_candidate: Tensor,
) -> None:
    """Begin one step back through a GRU.

    Args:
        gates: what :func:`gru_forward_` left; read, as are ``candidate``, ``product`` and ``before``.
        candidate: the candidate.
        product: recurrent products.
        before: hidden state before the step.
        passed: derivative of the quantized hidden state by the hidden state; read.
        by_hidden: gradient of the quantized hidden state; becomes the part of that of ``before`` that needs no product.
        by_product: becomes the gradient of the recurrent products.
        by_candidate: becomes the gradient of the input product of the candidate; those of the gates are the same.
    """
    width = before.shape[1]
    reset, update = gates.chunk(2, dim=1)
    hidden = by_hidden * passed
    by_candidate.copy_(_tanh_gradient((1 - update) * hidden, candidate))
    by_product[:, :width].copy_(_sigmoid_gradient(by_candidate * product[:, 2 * width :], reset))
    by_product[:, width : 2 * width].copy_(_sigmoid_gradient((before - candidate) * hidden, update))
    by_product[:, 2 * width :].copy_(by_candidate * reset)
    by_hidden.copy_(update * hidden)


_ON_CPU: dict[Pointwise, Callable[..., bool]] = {
    lstm_forward_: cpu.lstm_forward_,
    lstm_backward_: cpu.lstm_backward_,
}


def fused(function: Pointwise, example: Tensor) -> Pointwise:
    """Return what does the same as one of the functions above in one pass, for tensors like ``example``."""
    if example.is_cpu and function in _ON_CPU:
        return functools.partial(_or_plain, _ON_CPU[function], function)
    return compiled(function) if gpu.activation_kernels(example) is not None else function


@functools.cache
def compiled(function: Pointwise, backend: str = "inductor") -> Pointwise:
    """Compile one of the functions above at its first call, once for all shapes; if that fails, warn and run it."""
    quick: Pointwise | None = torch.compile(function, dynamic=True, fullgraph=True, backend=backend)

    @functools.wraps(function)
    def run(*arguments: Any) -> None:
        nonlocal quick
        if quick is not None:
            try:
                return quick(*arguments)
            except Exception as error:  # torch names no common class for what a compiler can go wrong with
                quick = None
                warnings.warn(
                    f"lightning_balq runs steps of recurrent layers operation by operation, and slower: "
                    f"{function.__name__} could not be compiled ({error})",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return function(*arguments)

    return run


def _or_plain(quick: Callable[..., bool], plain: Pointwise, *arguments: Any) -> None:
    if not quick(*arguments):
        plain(*arguments)
