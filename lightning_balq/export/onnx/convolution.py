"""Convolutions in integers: windows are gathered by slices, and multiplied as a linear layer's inputs are."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_balq.export.description import QuantizedInput, QuantizedWeight
from lightning_balq.export.onnx.activation import emit_integers, zero_point
from lightning_balq.export.onnx.forms import WeightForm
from lightning_balq.export.onnx.graph import GraphBuilder
from lightning_balq.export.onnx.product import emit_product

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def why_not_gathered(layer: Convolution) -> str | None:
    """Why the windows of a convolution cannot be gathered; ``None`` if they can."""
    if layer.groups != 1:
        return f"it has {layer.groups} groups"
    if layer.padding_mode != "zeros":
        return f"it pads by {layer.padding_mode!r}"
    return None


def padding(layer: Convolution) -> tuple[list[int], list[int]]:
    """Zeros before and after each spatial dimension."""
    if layer.padding == "same":
        totals = [dilation * (kernel - 1) for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [total // 2 for total in totals], [total - total // 2 for total in totals]
    both = [0] * len(layer.kernel_size) if isinstance(layer.padding, str) else list(layer.padding)
    return both, both


def emit_convolution(
    builder: GraphBuilder,
    x: str,
    layer: Convolution,
    given: QuantizedInput,
    weight: QuantizedWeight,
    form: WeightForm,
    bias: Tensor | None,
) -> str:
    """Emit a convolution of ``x``, shape ``(N, C, ..)``, in integers; see :func:`emit_product`."""
    count = len(layer.kernel_size)
    spatial = list(range(2, 2 + count))
    integers = builder.op("Transpose", emit_integers(builder, x, given), perm=[0, *spatial, 1])
    begin, end = padding(layer)
    if any(begin) or any(end):
        pads = builder.integers(0, *begin, 0, 0, *end, 0)
        integers = builder.op("Pad", integers, pads, builder.byte(zero_point(given)))
    windows = _windows(builder, integers, layer.kernel_size, layer.stride, layer.dilation)
    result = emit_product(builder, windows, given, weight, form, bias)
    return builder.op("Transpose", result, perm=[0, count + 1, *range(1, count + 1)])


def _windows(
    builder: GraphBuilder, integers: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> str:
    """Emit all taps of the windows side by side in the last dimension, channels last within each."""
    axes, strides = builder.integers(*range(1, len(kernel) + 1)), builder.integers(*stride)
    taps = []
    for tap in itertools.product(*map(range, kernel)):
        starts = [step * index for step, index in zip(dilation, tap, strict=True)]
        # So many positions are left after the last window has taken this tap.
        left = [step * (size - 1 - index) for step, size, index in zip(dilation, kernel, tap, strict=True)]
        ends = [-count if count else 2**62 for count in left]
        taps.append(builder.op("Slice", integers, builder.integers(*starts), builder.integers(*ends), axes, strides))
    return taps[0] if len(taps) == 1 else builder.op("Concat", *taps, axis=-1)
