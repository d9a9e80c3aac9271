"""Forwards of quantized layers: the mixins that :func:`lightning_balq.nn.swap.swap_class` puts before a class."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_balq.nn.cells import QuantizedCell
from lightning_balq.nn.inputs import map_first_tensor
from lightning_balq.nn.layers import RUNNING, STATE, LayerQuantizer, quantized_weights
from lightning_balq.nn.learned import Learning
from lightning_balq.nn.recurrent import QuantizedRecurrent
from lightning_balq.nn.swap import Swapped, module_of, original_class


class QuantizedLayer(Learning):
    """Mixin of every quantized layer: runs the forward of the original class while its weights read as quantized.

    Right for any forward, users' own included. Not safe for concurrent calls of one layer from several threads.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Quantize the first tensor given and every weight, and call the original forward."""
        layer = module_of(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        original = super().forward  # type: ignore[misc]  # "forward" undefined in superclass
        args, kwargs = map_first_tensor(lambda x: quantizer.quantize_input(layer, "input", x), original, args, kwargs)
        if RUNNING in layer.__dict__:  # a forward that calls itself
            return original(*args, **kwargs)
        with quantized_weights(layer, quantizer):
            return original(*args, **kwargs)


class QuantizedLinear(QuantizedLayer):
    """Direct forward of :class:`torch.nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the quantized weight to the quantized input."""
        layer = module_of(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        weight = quantizer.quantize_weight(layer, "weight")
        return F.linear(quantizer.quantize_input(layer, "input", input), weight, layer.bias)


class QuantizedConv(QuantizedLayer):
    """Direct forward of the convolutions of :mod:`torch.nn`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the quantized weight to the quantized input."""
        layer = module_of(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        weight = quantizer.quantize_weight(layer, "weight")
        output: Tensor = layer._conv_forward(quantizer.quantize_input(layer, "input", input), weight, layer.bias)
        return output


class QuantizedAttention(QuantizedLayer):
    """Forward of :class:`torch.nn.MultiheadAttention`, whose fast path compares its inputs by identity."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Quantize each distinct input once, and every projection weight; the input of ``out_proj`` stays float."""
        layer = module_of(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        done: dict[int, Tensor] = {}
        for name, given in (("query", query), ("key", key), ("value", value)):
            if id(given) not in done:
                done[id(given)] = quantizer.quantize_input(layer, name, given)
        inputs = [done[id(given)] for given in (query, key, value)]
        with quantized_weights(layer, quantizer):
            return super(QuantizedLayer, self).forward(*inputs, *args, **kwargs)  # type: ignore[misc]  # as above


class SlowPathEncoderLayer(Swapped):
    """Mixin of a ``TransformerEncoderLayer`` with quantized parts: keeps evaluation off torch's fused path.

    That path reads the weights of the parts without calling them, so it would silently run the float network.
    """

    @property
    def activation_relu_or_gelu(self) -> int:
        """One of torch's own conditions for the fused path, and used for nothing else."""
        return 0

    @activation_relu_or_gelu.setter
    def activation_relu_or_gelu(self, value: int) -> None:
        self.__dict__["activation_relu_or_gelu"] = value


class SlowPathEncoder(Swapped):
    """Mixin of a ``TransformerEncoder`` with quantized parts: no nested tensors, which need the fused path."""

    @property
    def use_nested_tensor(self) -> bool:
        """One of torch's own conditions for nested tensors."""
        return False

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: bool) -> None:
        self.__dict__["use_nested_tensor"] = value


def layer_mixin(cls: type[nn.Module]) -> type[Swapped]:
    """Choose the mixin for a class of a quantizable type: direct where the forward is torch's own, else general."""
    if issubclass(cls, nn.RNNBase):
        return QuantizedRecurrent
    if cls.forward in (nn.RNNCell.forward, nn.LSTMCell.forward, nn.GRUCell.forward):
        return QuantizedCell
    if cls.forward is nn.MultiheadAttention.forward:
        return QuantizedAttention
    if cls.forward is nn.Linear.forward:
        return QuantizedLinear
    for conv in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if issubclass(cls, conv) and cls.forward is conv.forward and cls._conv_forward is conv._conv_forward:
            return QuantizedConv
    return QuantizedLayer


def input_names(layer: nn.Module) -> tuple[str, ...]:
    """Names of the inputs of ``layer`` whose values are activations."""
    if isinstance(layer, nn.Embedding):
        return ()
    is_attention = layer_mixin(original_class(layer)) is QuantizedAttention
    return ("query", "key", "value") if is_attention else ("input",)
