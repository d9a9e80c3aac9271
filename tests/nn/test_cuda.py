"""Training on a GPU: no step waits for the device, and the codes are those of the CPU."""

import pytest
import torch
from torch import nn

from lightning_balq.nn import BalancedQuantizer, activation_quantizers, quantize_, unquantize_, update_ranges_
from lightning_balq.nn.activation import settle_ranges_
from lightning_balq.nn.layers import quantized_layers
from tests.helpers import everything, randn, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def without_waiting():
    """From its call on, an operation that makes the host wait for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("reuse", [True, False])
def test_training_step_never_waits_for_the_device(without_waiting, bits, reuse):
    model = tiny_model().cuda()
    quantize_(model, everything(BalancedQuantizer(bits), activation_bits=bits))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    caches = [state.cache for _, _, state in quantized_layers(model)]
    x, y = randn(8, 1, 8, 8).cuda(), torch.zeros(8, dtype=torch.long).cuda()
    for step in range(4):
        if step == 2:  # the first steps move ranges to the device and compile
            settle_ranges_(activation_quantizers(model))
            without_waiting()
        for cache in caches if reuse else ():
            cache.open(forget=True)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        update_ranges_(activation_quantizers(model))


def test_levels_on_the_gpu_are_those_on_the_cpu():
    model = tiny_model()
    for bits in (1, 4, 8):
        quantize_(model, everything(BalancedQuantizer(bits, scale="max")))
        here = [state.weights["weight"].levels(layer.weight) for _, layer, state in quantized_layers(model)]
        there = [
            state.weights["weight"].levels(layer.weight.cuda()).cpu() for _, layer, state in quantized_layers(model)
        ]
        for one, other in zip(here, there, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        unquantize_(model)


def recurrent_model():
    torch.manual_seed(0)
    return nn.ModuleList([nn.LSTM(8, 16), nn.GRU(16, 16, bidirectional=True)])


def run_through(model, x):
    for layer in model:
        x, _ = layer(x)
    return x


@pytest.mark.parametrize("activation_bits", [None, 2])
def test_recurrent_training_step_never_waits_for_the_device(without_waiting, activation_bits):
    model = recurrent_model().cuda()
    quantize_(model, everything(BalancedQuantizer(2, scale="mean"), activation_bits=activation_bits))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x = randn(5, 4, 8).cuda()
    for step in range(4):
        if step == 2:
            settle_ranges_(activation_quantizers(model))
            without_waiting()
        optimizer.zero_grad()
        run_through(model, x).square().mean().backward()
        optimizer.step()
        update_ranges_(activation_quantizers(model))
    torch.cuda.set_sync_debug_mode("default")
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("activation_bits", [None, 2])
def test_recurrent_layers_on_the_gpu_compute_what_they_do_on_the_cpu(activation_bits):
    options = {"activation_bits": activation_bits, "activation_range": "unit", "activation_sign": "signed"}
    model = recurrent_model().double()  # in float64, so that no state changes its level by rounding
    quantize_(model, everything(BalancedQuantizer(2, scale="mean"), **options))
    x = randn(5, 4, 8, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        outputs = run_through(model, x.to(device))
        outputs.square().mean().backward()
        found.append([outputs.detach().cpu(), *(parameter.grad.cpu() for parameter in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)  # sums in another order
