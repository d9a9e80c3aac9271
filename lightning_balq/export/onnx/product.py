"""Products of quantized activations and weights in integers."""

import torch
from torch import Tensor

from lightning_balq.export.description import QuantizedInput, QuantizedWeight
from lightning_balq.export.onnx.activation import unit, zero_point
from lightning_balq.export.onnx.decode import OFFSET, decode_integers
from lightning_balq.export.onnx.forms import WeightForm
from lightning_balq.export.onnx.graph import GraphBuilder


def emit_product(
    builder: GraphBuilder,
    integers: str,
    given: QuantizedInput,
    weight: QuantizedWeight,
    form: WeightForm,
    added: Tensor | str | None,
) -> str:
    """Emit a linear layer on integers: the exact sum of products, and one float product and sum for each output.

    Args:
        builder: where to.
        integers: name of uint8 activations, shape ``(.., inputs)``.
        given: what they stand for.
        weight: of shape ``(outputs, inputs)``, or that of a convolution whose windows are in the activations.
        form: what :func:`lightning_balq.export.onnx.forms.choose_form` chose for both.
        added: to the products: a bias, or the name of values of the shape of the result.

    Returns:
        Name of float32 values, shape ``(.., outputs)``.
    """
    zero = builder.byte(zero_point(given))
    points = [zero, builder.byte(OFFSET)] if form.kind == "uint8" else [zero] if zero_point(given) else []
    sums = builder.op("MatMulInteger", integers, decode_integers(builder, weight, form), *points)
    if form.kind == "codes":  # 2c - n for codes c
        sums = _of_odd_integers(builder, sums, integers, given, weight.bits)
    scale = (weight.scale.double() * form.unit * unit(given)).to(torch.float32)
    if added is None:
        # Not DequantizeLinear, which ONNX Runtime moves over operators of shapes, with zero points that 32 bits lack.
        return builder.op("Mul", builder.cast(sums, "FLOAT"), builder.constant(scale))
    per_tensor = scale.numel() == 1
    values = builder.op("DequantizeLinear", sums, builder.constant(scale.reshape(()) if per_tensor else scale), axis=-1)
    return builder.op("Add", values, added if isinstance(added, str) else builder.constant(added))


def _of_odd_integers(builder: GraphBuilder, sums: str, integers: str, given: QuantizedInput, bits: int) -> str:
    def whole(value: int) -> str:
        return builder.constant(torch.tensor(value, dtype=torch.int32))

    activations = builder.cast(integers, "INT32")
    if zero_point(given):
        activations = builder.op("Sub", activations, whole(zero_point(given)))
    total = builder.op("ReduceSum", activations, builder.integers(-1), keepdims=1)
    doubled = builder.op("Mul", sums, whole(2))
    return builder.op("Sub", doubled, builder.op("Mul", total, whole(2**bits - 1)))
