"""Time of a quantized recurrent layer, forward and backward, against torch's fused float layer.

Question: what does quantizing the weights of an LSTM or a GRU cost, and what quantizing its hidden state at every step?
Not measured: the layers around it (bench_steps), loading of data, accuracy.
Run: python -m benchmarks.bench_recurrent

300 units, batch 20, 35 steps: the Penn Treebank networks of He et al. 2016 and Xu et al. 2018. Every call quantizes the
weights anew, as a training step does, and computes all gradients. ``W2A2`` quantizes input and hidden state too.
``plain loop`` is the same with the loop that autograd differentiates; ``loop of cells`` what a user would write: a
float ``nn.LSTMCell`` whose quantizer is called at every step. Brevitas: its LSTM, where it is installed, with 2-bit
weights, input and hidden state, its other quantizers turned off. ``--quick``: the LSTM alone.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Case, measure
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from lightning_balq import BalancedQuantizer, QuantizationConfig, UniformQuantizer, functional, quantize_
from lightning_balq.nn import WeightQuantizer, activation_quantizers, recurrent, settle_ranges_, update_ranges_

REFERENCE = "float"
UNITS, BATCH, STEPS = 300, 20, 35
LAYERS: dict[str, type[nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
CELLS: dict[str, type[nn.RNNCellBase]] = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}
MEAN, MEDIAN = BalancedQuantizer(2, scale="mean"), BalancedQuantizer(2, center="median", scale="mean")
UNIFORM = UniformQuantizer(2, scale="mean")


def run(options: Options) -> Iterator[list[Record]]:
    """Measure both kinds of layers."""
    for name in list(LAYERS)[:1] if options.quick else LAYERS:
        x = torch.randn(STEPS, BATCH, UNITS, generator=torch.Generator().manual_seed(0))
        x = x.to(options.device).requires_grad_()
        cases = {case: forward_and_backward(make(), x) for case, make in modules(name, options.device).items()}
        parameters = {"layer": name, "units": UNITS, "batch": BATCH, "steps": STEPS}
        yield records(measure(cases, options.device, options.repeats).items(), parameters, REFERENCE)


def modules(name: str, device: torch.device) -> dict[str, Callable[[], nn.Module]]:
    """Ways to make the layer, from the same weights."""
    torch.manual_seed(0)
    layer = LAYERS[name](UNITS, UNITS).to(device)
    cases: dict[str, Callable[[], nn.Module]] = {
        REFERENCE: partial(copy.deepcopy, layer),
        "balanced mean W2": partial(quantized, layer, MEAN, None),
        "balanced median W2": partial(quantized, layer, MEDIAN, None),
        "uniform W2": partial(quantized, layer, UNIFORM, None),
        "balanced mean W2A2": partial(quantized, layer, MEAN, 2),
        "uniform W2A2": partial(quantized, layer, UNIFORM, 2),
        "balanced mean W2A2, plain loop": partial(PlainLoop, layer),
        "balanced mean W2A2, loop of cells": partial(LoopOfCells, name, layer),
    }
    if name == "LSTM":
        cases |= {f"{case} W2A2": make for case, make in peers.lstm_peers(UNITS, device).items()}
    return cases


def quantized(layer: nn.Module, weight: WeightQuantizer, activation_bits: int | None) -> nn.Module:
    """Copy of a layer that this library quantizes."""
    model = copy.deepcopy(layer)
    quantize_(model, QuantizationConfig(weight, activation_bits=activation_bits))
    return model


class PlainLoop(nn.Module):
    """The quantized layer, with the form of its steps that autograd differentiates."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = quantized(layer, MEAN, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        fast = recurrent.recurrent_fake_quantize
        recurrent.recurrent_fake_quantize = functional.recurrent_fake_quantize
        try:
            return self.layer(x)
        finally:
            recurrent.recurrent_fake_quantize = fast


class LoopOfCells(nn.Module):
    """A quantized cell called step by step."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        cell = CELLS[name](UNITS, UNITS)
        cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
        self.cell = quantized(cell.to(next(layer.parameters()).device), MEAN, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        state, outputs = None, []
        for step in x:
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs), state


def forward_and_backward(model: nn.Module, x: Tensor) -> Case:
    """One call with all gradients, and what belongs to a training step of the quantizers."""
    inputs = activation_quantizers(model)

    def step() -> None:
        model.zero_grad()
        model(x)[0].sum().backward()
        update_ranges_(inputs)
        settle_ranges_(inputs)

    return step


BENCHMARK = Benchmark("bench_recurrent", __doc__, run, repeats=20, quick_repeats=8)

if __name__ == "__main__":
    BENCHMARK.main()
