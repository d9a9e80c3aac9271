"""Quantizers of other libraries, where they are installed; all are uniform, none is balanced.

Each gives a call that replaces the weight by its levels with a straight-through gradient, as its own layers would in
training, so that it includes what they do there: finding the range of the weight, and whatever else belongs to a call.
"""

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from benchmarks.harness import Case

Peer = Callable[[Tensor, int, bool], Case | None]


def fused_fake_quantize(bits: int, device: torch.device, *, per_channel: bool) -> torch.nn.Module:
    """Build the fused fake-quantizer of ``torch.ao.quantization`` for weights, with its observer."""
    from torch.ao import quantization as ao

    observer = ao.MovingAveragePerChannelMinMaxObserver if per_channel else ao.MovingAverageMinMaxObserver
    module = ao.FusedMovingAvgObsFakeQuantize(
        observer=observer,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
    )
    return module.to(device)


def torch_fake_quantize(weight: Tensor, bits: int, per_channel: bool) -> Case:
    """``torch.ao.quantization``, the default of its quantization-aware training."""
    module = fused_fake_quantize(bits, weight.device, per_channel=per_channel)
    return lambda: module(weight)


def brevitas(weight: Tensor, bits: int, per_channel: bool) -> Case:
    """Brevitas: the weight quantizer of a convolution with floating point scales."""
    from brevitas import nn, quant

    chosen = quant.Int8WeightPerChannelFloat if per_channel else quant.Int8WeightPerTensorFloat
    channels, inputs, *kernel = weight.shape
    layer = nn.QuantConv2d(inputs, channels, kernel, bias=False, weight_quant=chosen, weight_bit_width=bits)
    layer.weight = torch.nn.Parameter(weight.detach())
    layer.to(weight.device)
    return layer.quant_weight


def torchao(weight: Tensor, bits: int, per_channel: bool) -> Case | None:
    """torchao: its fake-quantizer of integers, which has no scale per tensor."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    if not per_channel:
        return None
    module = IntxFakeQuantizer(IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), "per_channel", is_symmetric=True))
    return lambda: module(weight.flatten(1))


PEERS: dict[str, Peer] = {"torch": torch_fake_quantize, "brevitas": brevitas, "torchao": torchao}
"""Distribution to its quantizer."""


def weight_peers(weight: Tensor, bits: int, *, per_channel: bool) -> dict[str, Case]:
    """Return a case for each peer that is installed and can do this; say which cannot."""
    cases = {}
    for name, make in PEERS.items():
        if (installed := _version(name)) is None:
            print(f"left out: {name} is not installed")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = make(weight, bits, per_channel)
        if case is None:
            print(f"left out: {name} has no such quantizer (bits {bits}, per_channel {per_channel})")
        else:
            cases[f"{name} {installed}"] = case
    return cases


def lstm_peers(units: int, device: torch.device) -> dict[str, Callable[[], torch.nn.Module]]:
    """Return what makes a 2-bit LSTM of brevitas, if it is installed; no other peer has one."""
    if (installed := _version("brevitas")) is None:
        print("left out: brevitas is not installed")
        return {}
    return {f"brevitas {installed}": lambda: _brevitas_lstm(units).to(device)}


def _brevitas_lstm(units: int) -> torch.nn.Module:
    from brevitas.nn import QuantLSTM

    off = dict.fromkeys(("bias_quant", "gate_acc_quant", "sigmoid_quant", "tanh_quant", "cell_state_quant"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer: torch.nn.Module = QuantLSTM(units, units, weight_bit_width=2, io_bit_width=2, **off)
    return layer


def _version(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None
