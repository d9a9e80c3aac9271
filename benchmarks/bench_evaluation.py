"""Time of an evaluation forward of a quantized network, against float.

Question: does a network whose weights are quantized already run as fast as the float one?
Not measured: integer arithmetic, which needs an exported network; activations, which stay float here.
Run: python -m benchmarks.bench_evaluation

In evaluation mode, without gradients, and with levels kept from one forward to the next, as the callback does in
``trainer.validate``, ``test`` and ``predict``: the first forward quantizes, those that follow are timed. ``--quick``:
without ResNet-18.
"""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bench_steps import MLP, PLANS, REFERENCE, RESNET18
from benchmarks.harness import measure
from benchmarks.networks import NETWORKS
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from lightning_balq import BalancedQuantizer, QuantizationConfig, quantize_
from lightning_balq.nn.layers import quantized_layers

BITS = 4


def run(options: Options) -> Iterator[list[Record]]:
    """Measure a network of large layers and one of small ones."""
    for name in (MLP,) if options.quick else (RESNET18, MLP):
        network = NETWORKS[name]
        torch.manual_seed(0)
        plain = network.build().eval()
        quantized = copy.deepcopy(plain)
        quantize_(quantized, QuantizationConfig(BalancedQuantizer(BITS), quantize_first_last=PLANS[name].all_layers))
        keep_levels(quantized)
        inputs = network.batch()[0].to(options.device)
        models = {REFERENCE: plain, f"balanced W{BITS}": quantized}
        cases = {case: partial(forward, model.to(options.device), inputs) for case, model in models.items()}
        parameters = {"network": name, "all_layers": PLANS[name].all_layers}
        yield records(measure(cases, options.device, options.repeats).items(), parameters, REFERENCE)


def keep_levels(model: nn.Module) -> None:
    """Reuse levels as long as weights stay as they are."""
    for _, _, state in quantized_layers(model):
        state.cache.open(forget=True)


@torch.no_grad()
def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run a model without gradients."""
    return model(inputs)


BENCHMARK = Benchmark("bench_evaluation", __doc__, run, repeats=20, quick_repeats=20)

if __name__ == "__main__":
    BENCHMARK.main()
