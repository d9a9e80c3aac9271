"""Time of whole training steps, quantized against float.

Question: how much longer does a training step take with this library's callback, in a real Trainer?
Not measured: recording of code statistics (bench_recording), loading of data, accuracy.
Run: python -m benchmarks.bench_steps

Each round trains every case of a network for a few steps, from the same weights and on the same batch. The time of a
case is the median of its steps after a warm-up; ratios are to float in the same round. The first and the last layer of
the residual networks stay float, the default; of the others every layer is quantized that can be.
``--quick``: without ResNet-18.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.harness import Measurement, interleave
from benchmarks.networks import NETWORKS
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from benchmarks.training import step_seconds
from lightning_balq import BalancedQuantization, UniformQuantization
from lightning_balq.callback import QuantizationCallback

REFERENCE = "float"
RESNET18, RESNET20, LSTM, MLP = NETWORKS


@dataclass(frozen=True)
class Plan:
    """How a network is timed.

    Attributes:
        widths: weight and activation bits of the quantized cases.
        all_layers: quantize the first and the last layer too.
        warm_up: steps of each round that do not count.
        steps: steps of each round that do.
    """

    widths: tuple[tuple[int, int | None], ...]
    all_layers: bool
    warm_up: int
    steps: int


PLANS = {
    RESNET18: Plan(((4, None),), all_layers=False, warm_up=1, steps=2),
    RESNET20: Plan(((2, None), (2, 2)), all_layers=False, warm_up=1, steps=3),
    LSTM: Plan(((2, None),), all_layers=True, warm_up=2, steps=8),
    MLP: Plan(((4, None), (2, 2)), all_layers=True, warm_up=10, steps=60),
}


def run(options: Options) -> Iterator[list[Record]]:
    """Measure every network."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, plan in PLANS.items():
        if not (options.quick and name == RESNET18):
            yield time_network(name, plan, options)


def time_network(name: str, plan: Plan, options: Options) -> list[Record]:
    """Measure the cases of one network."""
    samples = {case: partial(sample, name, plan, make, options) for case, make in cases(plan).items()}
    first = {case: _seconds(once) for case, once in samples.items()}  # compiles what will be compiled
    times = interleave(samples, options.repeats)
    measured = [(case, Measurement(times[case], plan.steps, first[case])) for case in samples]
    return records(measured, {"network": name, "all_layers": plan.all_layers}, REFERENCE)


def cases(plan: Plan) -> dict[str, Callable[[], list[QuantizationCallback]]]:
    """Callbacks of each case; ``W4`` leaves activations float, ``W2A2`` does not."""
    made: dict[str, Callable[[], list[QuantizationCallback]]] = {REFERENCE: list}
    for weight_bits, activation_bits in plan.widths:
        width = f"W{weight_bits}" if activation_bits is None else f"W{weight_bits}A{activation_bits}"
        for method, kind in (("balanced", BalancedQuantization), ("uniform", UniformQuantization)):
            made[f"{method} {width}"] = partial(_callbacks, kind, weight_bits, activation_bits, plan.all_layers)
    return made


def _callbacks(
    kind: type[QuantizationCallback], weight_bits: int, activation_bits: int | None, all_layers: bool
) -> list[QuantizationCallback]:
    callback = kind(weight_bits, activation_bits, quantize_first_last=all_layers, record_every_n_steps=0, verbose=0)
    return [callback]


def sample(name: str, plan: Plan, make: Callable[[], list[QuantizationCallback]], options: Options) -> float:
    """Seconds of one step, from a few steps of a network with its initial weights."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    return step_seconds(network.build(), make(), network.batch(), plan.steps, plan.warm_up, options.device)


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


BENCHMARK = Benchmark("bench_steps", __doc__, run, repeats=7, quick_repeats=4)

if __name__ == "__main__":
    BENCHMARK.main()
