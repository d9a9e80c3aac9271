"""Call the compiled CPU code on tensors. Every function returns ``None`` where only the plain form will do."""

import ctypes
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_balq.functional._checks import (
    BALANCED_SCALES,
    CENTERS,
    SCALES,
    BalancedScale,
    Center,
    Granularity,
    Scale,
)
from lightning_balq.functional.recurrent import StateGrid
from lightning_balq.kernels.native import library
from lightning_balq.kernels.plain import is_plain

_DONE, _NOT_FINITE, _NO_MEMORY = range(3)
_FLOAT32 = torch.float32

Step: TypeAlias = Callable[..., None]


class QuantizedActivation(NamedTuple):
    """Levels; whether each value lies within the interval; what :func:`activation_observation` says."""

    levels: Tensor
    mask: Tensor | None
    observation: Tensor | None


def balanced(
    weight: Tensor, bits: int, center: Center, scale: BalancedScale, granularity: Granularity, *, codes: bool = False
) -> Tensor | None:
    """Levels of balanced quantization, or its codes."""
    options = CENTERS.index(center), BALANCED_SCALES.index(scale)
    return _quantize("balq_balanced", weight, bits, options, granularity, codes)


def uniform(weight: Tensor, bits: int, scale: Scale, granularity: Granularity, *, codes: bool = False) -> Tensor | None:
    """Levels of uniform quantization, or its codes."""
    return _quantize("balq_uniform", weight, bits, (SCALES.index(scale),), granularity, codes)


def activation(
    x: Tensor, bits: int, range_: Tensor, signed: Tensor, *, with_mask: bool, spread: float | None
) -> QuantizedActivation | None:
    """Levels of an activation, and what else is asked for, in one pass over it; no observation without ``spread``."""
    if not is_plain(x, "cpu") or x.numel() == 0 or range_.dtype != _FLOAT32:
        return None
    code = library()
    if code is None:
        return None
    values = _dense(x.detach())
    levels = torch.empty_like(values)
    mask = torch.empty_like(values, dtype=torch.bool) if with_mask else None
    observation = None if spread is None else torch.empty(3, dtype=_FLOAT32)
    status = code.balq_activation(
        _pointer(values),
        ctypes.c_int64(values.numel()),
        bits,
        _pointer(range_.detach()),
        _pointer(signed),
        ctypes.c_float(0.0 if spread is None else spread),
        torch.get_num_threads(),
        _pointer(levels),
        _pointer(mask),
        _pointer(observation),
    )
    _check_memory(status)
    return QuantizedActivation(levels.to(x.dtype), mask, observation)


def activation_gradient(gradient: Tensor, mask: Tensor) -> Tensor | None:
    """Gradient where ``mask`` is true, else 0."""
    if gradient.dtype != _FLOAT32 or gradient.stride() != mask.stride() or not is_plain(gradient, "cpu"):
        return None
    code = library()
    if code is None or not _is_dense(gradient) or gradient.numel() == 0:
        return None
    passed = torch.empty_like(gradient)
    code.balq_activation_gradient(
        _pointer(gradient),
        _pointer(mask),
        ctypes.c_int64(gradient.numel()),
        torch.get_num_threads(),
        _pointer(passed),
    )
    return passed


class _State(ctypes.Structure):
    """Levels of a hidden state, as recurrent.cpp reads them."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("range", ctypes.c_float),
        ("share", ctypes.c_float),
        ("is_signed", ctypes.c_uint8),
    )


def lstm_steps(example: Tensor, grid: StateGrid) -> tuple[Step, Step] | None:
    """Compiled forms of what :mod:`lightning_balq.kernels.pointwise` does in an LSTM, forward and back.

    They take contiguous tensors of the type of ``example``, unchecked: checking them would take as long as the work.
    """
    code = library()
    if code is None or example.dtype != _FLOAT32:
        return None
    share = 1.0 if grid.share is None else float(grid.share)
    state = _State(grid.bits, float(grid.range), share, bool(grid.signed))
    threads = torch.get_num_threads()

    def forward_(*tensors: Tensor) -> None:
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        rows, width = map(ctypes.c_int64, tensors[-1].shape)
        _check_memory(code.balq_lstm_forward(*pointers, rows, width, threads, ctypes.byref(state)))

    def backward_(*tensors: Tensor) -> None:
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        rows, width = map(ctypes.c_int64, tensors[-1].shape)
        code.balq_lstm_backward(*pointers, rows, width, threads, ctypes.byref(state))

    return forward_, backward_


def _quantize(
    function: str, weight: Tensor, bits: int, options: tuple[int, ...], granularity: Granularity, codes: bool
) -> Tensor | None:
    if not is_plain(weight, "cpu") or weight.numel() == 0 or (granularity == "per_channel" and weight.dim() == 0):
        return None
    code = library()
    if code is None:
        return None
    values = _dense(weight.detach())
    rows = weight.shape[0] if granularity == "per_channel" else 1
    result = torch.empty_like(values, dtype=torch.uint8 if codes else _FLOAT32)
    outputs = (_pointer(result), None) if codes else (None, _pointer(result))
    status = getattr(code, function)(
        _pointer(values),
        ctypes.c_int64(rows),
        ctypes.c_int64(values.numel() // rows),
        bits,
        *options,
        torch.get_num_threads(),
        *outputs,
    )
    _check_memory(status)
    if status == _NOT_FINITE:
        return None
    return result if codes else result.to(weight.dtype)


_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _is_dense(values: Tensor) -> bool:
    """Whether values have no gaps in memory and dim 0 is outermost there, in whatever order the others are."""
    other = _FORMATS.get(values.dim())
    return values.is_contiguous() or (other is not None and values.is_contiguous(memory_format=other))


def _dense(values: Tensor) -> Tensor:
    values = values.to(_FLOAT32)
    return values if _is_dense(values) else values.contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def _check_memory(status: int) -> None:
    if status == _NO_MEMORY:
        raise MemoryError("not enough memory for quantizing")
