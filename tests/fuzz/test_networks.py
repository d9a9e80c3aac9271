"""Random networks under random configurations keep what is promised of every network and every configuration."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_balq import quantize_, unquantize_
from lightning_balq.nn import (
    activation_quantizers,
    learned_parameters,
    quantization_state,
    quantized_layers,
    settle_ranges_,
    update_ranges_,
)
from lightning_balq.nn.weights import peek_weight
from tests.fuzz.configurations import configurations
from tests.fuzz.networks import KINDS, Network, networks
from tests.helpers import assert_equal, snapshot

STEPS = 3
COUNT, MANY = 60, 550
"""Networks of each kind: in a run of all tests, and in the longer one."""


class Run:
    """A network in training, with all that a checkpoint holds of it."""

    def __init__(self, model: nn.Module, optimizer: str) -> None:
        self.model = model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = getattr(torch.optim, optimizer)(trained, lr=0.001)

    def step(self, network: Network, index: int) -> float:
        """Train on a batch; dropout depends on nothing but its number."""
        self.model.train()
        torch.manual_seed(index)
        self.optimizer.zero_grad()
        output = self.model(network.batch(index))
        loss = F.smooth_l1_loss(output, torch.ones_like(output))
        loss.backward()
        update_ranges_(activation_quantizers(self.model))
        settle_ranges_(activation_quantizers(self.model))
        self.optimizer.step()
        return loss.item()

    def output(self, network: Network) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return self.model(network.batch(STEPS))

    def save(self) -> bytes:
        checkpoint = {"state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.model.on_save_checkpoint(checkpoint)
        file = io.BytesIO()
        torch.save(checkpoint, file)
        return file.getvalue()

    def load(self, checkpoint: dict[str, Any]) -> None:
        self.model.on_load_checkpoint(checkpoint)
        self.model.load_state_dict(checkpoint["state_dict"], strict=True)
        self.optimizer.load_state_dict(checkpoint["optimizer"])


def keeps_its_promises(network: Network, data: st.DataObject) -> str:
    """Check everything; what was drawn, in words."""
    model, float_model = network.build(), network.build()
    model(network.batch(0))  # what pruning computes is there from the first forward on
    model.load_state_dict(float_model.state_dict())
    before, initial = snapshot(model), copy.deepcopy(model.state_dict())
    config = data.draw(configurations(model), label="config")
    decided = quantize_(model, config)
    # Where SGD moves a scale by many times itself, as tiny ones, its logarithm is no longer a number to train.
    far = "tiny" in repr(network) and any(learned_parameters(model))
    optimizer = data.draw(st.sampled_from(["Adam", "AdamW"] if far else ["Adam", "AdamW", "SGD"]), label="optimizer")
    assert_equal({name: value for name, value in model.state_dict().items() if "balq_" not in name}, initial)
    run = Run(model, optimizer)
    losses = [run.step(network, index) for index in range(STEPS)]
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert [name for name, _, _ in quantized_layers(model)] == [layer.name for layer in decided.quantized]
    output, state = run.output(network), quantization_state(model)
    assert output.isfinite().all()
    for _, layer, quantizer in quantized_layers(model):
        codes_and_levels_go_together(layer, quantizer)
        inputs_are_on_few_levels(layer, quantizer)
    assert_equal(quantization_state(model), state)  # evaluation observes nothing

    saved = run.save()
    checkpoint = torch.load(io.BytesIO(saved), weights_only=True)
    assert list(checkpoint["state_dict"]) == list(initial)
    float_model.load_state_dict(checkpoint["state_dict"], strict=True)
    fresh = network.build()
    quantize_(fresh, config)
    resumed = Run(fresh, optimizer)
    resumed.load(checkpoint)
    assert_equal(resumed.output(network), output)
    twin = Run(copy.deepcopy(model), optimizer)
    assert_equal(twin.output(network), output)
    assert_equal(resumed.step(network, STEPS), run.step(network, STEPS))
    assert_equal(dict(fresh.state_dict()), dict(model.state_dict()))
    assert_equal(twin.output(network), output)  # a copy shares nothing with what was trained on

    unquantize_(twin.model)
    assert_equal(twin.output(network), Run(float_model, optimizer).output(network))
    unquantize_(model)
    model.train()
    model.load_state_dict(initial, strict=True)
    model(network.batch(0))
    model.load_state_dict(initial, strict=True)
    assert snapshot(model) == before
    return f"{network} {config} {optimizer}"


def codes_and_levels_go_together(layer: nn.Module, quantizer: Any) -> None:
    """Each code stands for one level, the larger the higher, in the whole weight or in each output channel."""
    for name, how in quantizer.weights.items():
        with torch.no_grad():
            levels = quantizer.quantize_weight(layer, name)
            codes = quantizer.codes(layer, name)
        levels, pruned = by_channel(layer, levels), by_channel(layer, off_the_grid(layer, quantizer, name))
        assert codes.shape == levels.shape and codes.dtype == torch.uint8
        assert int(codes.max()) < 2**how.bits
        rows = [slice(None)] if how.scales(2) == 1 else range(len(codes))
        for row in rows:
            known: dict[int, set[float]] = {}
            kept = ~pruned[row].flatten()
            for code, level in zip(
                codes[row].flatten()[kept].tolist(), levels[row].flatten()[kept].tolist(), strict=True
            ):
                known.setdefault(code, set()).add(level)
            assert all(len(values) == 1 for values in known.values())
            ascending = [next(iter(known[code])) for code in sorted(known)]
            assert ascending == sorted(ascending)


def by_channel(layer: nn.Module, weight: Tensor) -> Tensor:
    """Output channels in front, as in every layer but a transposed convolution, (in, out / groups, ...)."""
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return weight
    return torch.cat([group.transpose(0, 1) for group in weight.chunk(layer.groups)])


def off_the_grid(layer: nn.Module, quantizer: Any, name: str) -> Tensor:
    """Where a weight stays as it is: what was pruned, what is zero where zeros are kept, and the padding row."""
    weight = peek_weight(layer, name).detach()
    mask = layer._buffers.get(f"{name}_mask")
    stays = torch.zeros_like(weight, dtype=torch.bool) if mask is None else mask == 0
    if name in quantizer.pruned:
        stays |= weight == 0
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
        stays[layer.padding_idx] = True
    return stays


def inputs_are_on_few_levels(layer: nn.Module, quantizer: Any) -> None:
    for name, activation in quantizer.inputs.items():
        if name.startswith("state"):
            continue  # quantized within the loop over steps
        dtype = next(layer.parameters()).dtype
        with torch.no_grad():
            values = quantizer.quantize_input(layer, name, torch.linspace(-9, 9, 999, dtype=dtype)).unique()
        assert len(values[values != 0]) <= 2**activation.bits


def check(kind: str, count: int) -> int:
    """Run as many networks of a kind; how many of them were different."""
    different = set()

    @settings(max_examples=count, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(network=networks(kind), data=st.data())
    def run(network: Network, data: st.DataObject) -> None:
        different.add(keeps_its_promises(network, data))

    run()
    return len(different)


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks_train_save_load_copy_and_undo(kind: str) -> None:
    assert check(kind, COUNT) >= 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_random_networks_train_save_load_copy_and_undo(kind: str) -> None:
    assert check(kind, MANY) >= 450  # a tenth is drawn twice
