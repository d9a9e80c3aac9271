"""Training on a GPU: no step waits for the device, and what comes out is what a CPU gives.

Each test runs on the CPU too, as far as it means something there: then at least its own code has been run.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_balq import BalancedQuantization, LSQQuantization
from lightning_balq.nn import (
    BalancedQuantizer,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    UniformQuantizer,
    activation_quantizers,
    quantize_,
    quantized_layers,
    recurrent,
    restore_,
    settle_ranges_,
    unquantize_,
    update_ranges_,
)
from tests.callback.tiny import Batches, quiet_trainer
from tests.callback.tiny import tiny_model as tiny_module
from tests.helpers import assert_equal, everything, hand_quantized, randn, tiny_model
from tests.waiting import DEVICES, NoReads, without_waiting

on_both = pytest.mark.parametrize("device", DEVICES)
METHODS = {
    "balanced": lambda bits: everything(BalancedQuantizer(bits), activation_bits=bits),
    "balanced median": lambda bits: everything(
        BalancedQuantizer(bits, "median", "least_squares", "per_channel"), activation_bits=bits, activation_range="unit"
    ),
    "balanced learned": lambda bits: everything(
        LearnedBalancedQuantizer(bits), activation_bits=bits, activation_range="lsq"
    ),
    "uniform": lambda bits: everything(UniformQuantizer(bits, "mean"), activation_bits=bits),
    "dorefa": lambda bits: everything(DoReFaQuantizer(bits), activation_bits=bits, activation_range="pact"),
    "lsq": lambda bits: everything(LSQQuantizer(bits), activation_bits=bits, activation_range="lsq"),
}
each_method = pytest.mark.parametrize("method", METHODS)
QUANTIZERS = {
    **{f"balanced {scale}": lambda bits, scale=scale: BalancedQuantizer(bits, scale=scale)
       for scale in ("max", "mean", "least_squares")},
    "balanced by channel": lambda bits: BalancedQuantizer(bits, granularity="per_channel"),
    "balanced median": lambda bits: BalancedQuantizer(bits, "median"),
    "uniform": UniformQuantizer,
    "uniform by channel": lambda bits: UniformQuantizer(bits, "mean", "per_channel"),
    "dorefa": DoReFaQuantizer,
}  # fmt: skip


def test_waiting_is_noticed_on_a_cpu():
    x = torch.tensor([1.0, 0.0])
    waits = (
        x[0].item, x.nonzero, lambda: x[x > 0], lambda: x.__setitem__(x > 0, torch.zeros(1)), lambda: float(x.sum()),
    )  # fmt: skip
    for wait in waits:
        with pytest.raises(RuntimeError, match="waits for the device"), NoReads():
            wait()


@pytest.mark.gpu
def test_waiting_is_noticed_on_a_gpu():
    x = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="called a synchronizing"), without_waiting("cuda"):
        x[0].item()


def images(device, count=8):
    return randn(count, 1, 8, 8).to(device), torch.arange(count, device=device) % 3


def train(model, x, y, optimizer=None, steps=1):
    """Train as the callback does."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    inputs = activation_quantizers(model)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x).float(), y).backward()
        optimizer.step()
        update_ranges_(inputs)
    settle_ranges_(inputs)
    return optimizer


@on_both
@each_method
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("reuse", [True, False])
def test_training_step_never_waits_for_the_device(device, method, bits, reuse):
    model = tiny_model().to(device)
    quantize_(model, METHODS[method](bits))
    x, y = images(device)
    optimizer = train(model, x, y, steps=2)  # these move ranges to the device, begin what is learned, and compile
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with without_waiting(device):
        for _ in range(2):
            for _, _, state in quantized_layers(model) if reuse else ():
                state.cache.open(forget=True)
            train(model, x, y, optimizer)
    assert any(not torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", ["gaussian", "ties", "integers"])
def test_codes_and_levels_on_the_gpu_are_those_on_the_cpu(draw, kind, bits, method):
    # Sums in float64 are taken in another order, which no mean of these seeds shows in float32.
    quantizer = QUANTIZERS[method](bits)
    weights = [
        torch.from_numpy(draw(kind, shape, seed)) for seed, shape in enumerate([(64, 90), (7, 3, 3, 3), (256, 700)])
    ]
    there = [weight.cuda() for weight in weights]
    levels = quantizer.levels_of_all(there)
    for one, other, together in zip(weights, there, levels, strict=True):
        if method == "dorefa":  # tanh of a GPU differs in the last place, and so may the code of a value at a border
            differ = quantizer.codes(other).cpu() != quantizer.codes(one)
            assert differ.float().mean() < 1e-3
            continue
        assert_equal(quantizer.codes(other).cpu(), quantizer.codes(one))
        assert_equal(quantizer.levels(other).cpu(), quantizer.levels(one))
        assert_equal(together.cpu(), quantizer.levels(one))


# ---- recurrent layers ------------------------------------------------------------------------------------------------


RECURRENT = {
    "lstm": lambda: nn.LSTM(8, 16, 2),
    "gru": lambda: nn.GRU(8, 16),
    "no bias": lambda: nn.GRU(8, 16, bias=False),
    "projection": lambda: nn.LSTM(8, 16, proj_size=4, bidirectional=True),
}


def recurrent_model():
    torch.manual_seed(0)
    return nn.ModuleList([nn.LSTM(8, 16), nn.GRU(16, 16, bidirectional=True)])


def run_through(model, x):
    for layer in model:
        x, _ = layer(x)
    return x


@on_both
@pytest.mark.parametrize("activation_bits", [None, 2])
def test_recurrent_training_step_never_waits_for_the_device_and_warns_of_nothing(device, activation_bits):
    model = recurrent_model().to(device)
    quantize_(model, everything(BalancedQuantizer(2, scale="mean"), activation_bits=activation_bits))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x, inputs = randn(5, 4, 8).to(device), activation_quantizers(model)

    def step():
        optimizer.zero_grad()
        run_through(model, x).square().mean().backward()
        optimizer.step()
        update_ranges_(inputs)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "RNN module weights are not part of single contiguous chunk of memory")
        step()
        settle_ranges_(inputs)
        step()
        # On the CPU, compiled steps read the range, which lies in memory.
        if device == "cuda" or activation_bits is None:
            with without_waiting(device):
                step()
    assert not any(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


@on_both
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layer_runs_on_the_levels_of_the_weights_as_they_are_now(device, kind):
    torch.manual_seed(0)
    layer, quantizer, x = RECURRENT[kind]().to(device), BalancedQuantizer(2, scale="mean"), randn(5, 4, 8).to(device)
    quantize_(layer, everything(quantizer))
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    for _ in range(3):
        outputs = layer(x)[0]
        unquantize_(layer)
        weights = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
        expected = hand_quantized(layer, dict.fromkeys(weights, quantizer))
        expected.flatten_parameters()
        assert_equal(outputs.detach(), expected(x)[0].detach())
        quantize_(layer, everything(quantizer))
        optimizer.zero_grad()
        outputs.square().mean().backward()
        optimizer.step()


def into_one_chunk(layer):
    """What ``flatten_parameters`` does on a GPU."""
    weights = layer._flat_weights
    chunk = torch.empty(sum(weight.numel() for weight in weights))
    place = 0
    for weight in weights:
        view = chunk[place : place + weight.numel()].view_as(weight).copy_(weight)
        weight.set_(chunk.untyped_storage(), place, view.shape, view.stride())
        place += weight.numel()
    layer.seen = {weight.untyped_storage().data_ptr() for weight in weights}


@pytest.mark.parametrize("kind", RECURRENT)
def test_weights_in_one_chunk_give_the_same_outputs_and_gradients(monkeypatch, kind):
    found = []
    for chunk in (False, True):
        torch.manual_seed(0)
        layer = RECURRENT[kind]()
        quantize_(layer, everything(BalancedQuantizer(2, scale="mean")))
        if chunk:
            monkeypatch.setattr(recurrent, "_runs_in_cudnn", lambda weights: True)
            monkeypatch.setattr(nn.RNNBase, "flatten_parameters", into_one_chunk)
        outputs, _ = layer(randn(5, 4, 8))
        assert not chunk or len(layer.seen) == 1
        outputs.square().mean().backward()
        assert all(one is other for one, other in zip(layer._flat_weights, layer.parameters(), strict=True))
        found.append([outputs.detach(), *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert_equal(one, other)


@pytest.mark.gpu
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


# ---- ways to run -----------------------------------------------------------------------------------------------------


def parameters_after(model, device, steps=3):
    train(model, *images(device), steps=steps)
    return [parameter.detach().cpu() for parameter in model.parameters()]


@on_both
@each_method
def test_deterministic_training_repeats_bit_for_bit(device, method, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            model = tiny_model().to(device)
            quantize_(model, METHODS[method](2))
            found.append(parameters_after(model, device))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(*found, strict=True):
        assert_equal(one, other)


@on_both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layers_multiply_levels_under_autocast(device, dtype):
    model, (x, _) = tiny_model().to(device), images(device)
    quantize_(model, everything(BalancedQuantizer(2)))
    levels = {
        f"{name}.weight": state.weights["weight"].levels(layer.weight.detach())
        for name, layer, state in quantized_layers(model)
    }
    seen = set()
    for _, layer, _ in quantized_layers(model):
        layer.register_forward_hook(lambda layer, inputs, outputs: seen.add(outputs.dtype))
    with torch.autocast(device, dtype):
        outputs = model(x)
        outputs.float().square().mean().backward()
    assert seen == {dtype}
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    unquantize_(model)
    with torch.autocast(device, dtype), torch.no_grad():
        assert_equal(
            hand_quantized(model, {name: lambda _, name=name: levels[name] for name in levels})(x), outputs.detach()
        )


@on_both
@each_method
def test_channels_last_changes_the_layout_and_not_the_levels(device, method):
    model, (x, y) = tiny_model().to(device), images(device)
    quantize_(model, METHODS[method](2))
    train(model, x, y, steps=2)
    weights = [layer.weight.detach().clone() for _, layer, _ in quantized_layers(model)]
    codes = [state.codes(layer, "weight") for _, layer, state in quantized_layers(model)]
    model.to(memory_format=torch.channels_last)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    train(model, x.to(memory_format=torch.channels_last), y)
    for (_, layer, state), weight, expected in zip(quantized_layers(model), weights, codes, strict=True):
        with torch.no_grad():
            layer.weight.copy_(weight)
        found = state.codes(layer, "weight")
        learned = "learned" in method or method == "lsq"  # whose scale has been trained since
        assert learned or torch.equal(found, expected)
        assert found.shape == expected.shape


@on_both
@pytest.mark.parametrize("quantizer", [BalancedQuantizer(4), UniformQuantizer(4), LearnedBalancedQuantizer(4)], ids=str)
def test_compiled_step_is_near_that_in_eager_mode(device, quantizer):
    """Weights alone: a value that is rounded otherwise would change the level of an activation."""
    backend = "inductor" if device == "cuda" else "aot_eager"
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model, (x, y) = tiny_model().to(device), images(device)
        quantize_(model, everything(quantizer))
        outputs = (torch.compile(model, backend=backend) if compiled else model)(x)
        F.cross_entropy(outputs, y).backward()
        found.append([outputs.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)  # rounded less often, sums in another order


@on_both
def test_captured_steps_are_those_of_eager_mode(device):
    """Weights alone: ranges that are observed move on, which a graph does not see."""
    found = []
    for captured in (False, True):
        model, (x, y) = tiny_model().to(device), images(device)
        quantize_(model, everything(BalancedQuantizer(2)))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(model=model, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        replay = capture(step) if captured and device == "cuda" else warmed_up(step)
        for _ in range(3):
            replay()
        found.append([parameter.detach().cpu() for parameter in model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)  # libraries may choose other sums where they are captured


WARM_UP = 3


def warmed_up(step):
    for _ in range(WARM_UP):
        step()
    return step


def capture(step):
    """Steps of a CUDA graph, after as many as warm it up; where tables are uploaded is a matter of the stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warmed_up(step)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # which runs nothing
        step()
    return graph.replay


@on_both
@pytest.mark.parametrize(
    "callback",
    [
        lambda: BalancedQuantization(2, 2, verbose=0),
        lambda: BalancedQuantization(2, 2, scale="learned", activation_range="lsq", verbose=0),
        lambda: LSQQuantization(3, 3, activation_range="lsq", verbose=0),
    ],
    ids=["balanced", "balanced learned", "lsq"],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_checkpoint_has_the_same_codes_and_ranges_on_a_cpu(tmp_path, device, callback, precision):
    model = tiny_module()
    trainer = quiet_trainer(
        tmp_path, accelerator="gpu" if device == "cuda" else "cpu", precision=precision, callbacks=[callback()],
        deterministic=False, max_epochs=2,
    )  # fmt: skip
    trainer.fit(model, Batches())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    restored = tiny_module(seed=1)
    restore_(restored, torch.load(tmp_path / "some.ckpt", map_location="cpu", weights_only=True))
    layers = list(quantized_layers(restored))
    assert len(layers) == 2
    for (name, here, state), (other_name, there, other) in zip(layers, quantized_layers(model.to(device)), strict=True):
        assert name == other_name
        assert_equal(state.codes(here, "weight"), other.codes(there, "weight").cpu())
        assert_equal(state.inputs["input"].range.cpu(), other.inputs["input"].range.cpu())
        assert_equal(here.weight.detach(), there.weight.detach().cpu())
