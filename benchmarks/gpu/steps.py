"""Time and memory of a training step of a network for ImageNet, float and quantized, eager and compiled.

A step is what it is in training with the callback, without the Trainer around it: quantize all weights at once, forward
in mixed precision, backward, SGD with momentum, and the ranges of activations. Images are random and on the device.
Memory is the peak of one step, weights and optimizer included.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Case, measure
from benchmarks.program import Options, records
from benchmarks.records import Record
from lightning_balq import BalancedQuantizer, QuantizationConfig, UniformQuantizer, quantize_
from lightning_balq.nn import (
    WeightQuantizer,
    activation_quantizers,
    quantized_layers,
    settle_ranges_,
    update_ranges_,
)
from recipes.models.networks import build

REFERENCE = "float"
BITS = 4
METHODS: dict[str, WeightQuantizer | None] = {
    REFERENCE: None, "uniform W4A4": UniformQuantizer(BITS), "balanced W4A4": BalancedQuantizer(BITS),
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large a step is.

    Attributes:
        batch: images.
        side: their width and height.
    """

    batch: int = 256
    side: int = 224


NETWORKS = {"ResNet-18": "resnet18", "ResNet-50": "resnet50"}


def run(name: str, size: Size, options: Options, *, compiled: bool) -> list[Record]:
    """Measure float and quantized steps of one network, all in the same rounds."""
    shape = (size.batch, 3, size.side, size.side)
    images = torch.randn(shape, device=options.device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (size.batch,), device=options.device)
    cases = {case: step(network(name, case, options.device, compiled=compiled), images, labels) for case in METHODS}
    measured = measure(cases, options.device, options.repeats, budget=10 * options.budget)
    parameters = {"network": name, "batch": size.batch, "side": size.side, "compiled": compiled}
    peaks = {case: peak_bytes(call, options.device) for case, call in cases.items()}
    return [
        record | {"images_per_second": size.batch / record["seconds"][1], "peak_allocated": peaks[record["case"]]}
        for record in records(measured.items(), parameters, REFERENCE)
    ]


def network(name: str, case: str, device: torch.device, *, compiled: bool) -> nn.Module:
    """Build a network, with its first and last layer float; the same weights in every case."""
    torch.manual_seed(0)
    model = build(NETWORKS[name], 1000).to(device, memory_format=torch.channels_last)
    quantizer = METHODS[case]
    if quantizer is not None:
        quantize_(model, QuantizationConfig(quantizer, activation_bits=BITS))
    if compiled:
        model.compile()
    return model


def step(model: nn.Module, images: Tensor, labels: Tensor) -> Case:
    """Return a call that trains a model for one step."""
    # Small enough for weights to stay what they are: times should not depend on how well a network learns.
    optimizer = torch.optim.SGD(model.parameters(), 1e-5, momentum=0.9)
    caches = [state.cache for _, _, state in quantized_layers(model)]
    inputs = activation_quantizers(model)

    def call() -> None:
        for cache in caches:
            cache.open(forget=True)
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_ranges_(inputs)
        settle_ranges_(inputs)  # which waits for the device after the first step only

    return call


def peak_bytes(case: Callable[[], object], device: torch.device) -> int | None:
    """Most memory that is allocated on a GPU while a case is called, whatever else it holds; ``None`` on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    case()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def groups() -> Iterator[tuple[str, bool]]:
    """Networks, and whether they are compiled; the more important first."""
    for name in NETWORKS:
        for compiled in (False, True):
            yield name, compiled
