"""Time and memory of quantizing activations in training, against other ways to do it.

Question: what does the activation quantizer cost, forward and backward, and how much does it keep for the backward?
Not measured: taking over the observed ranges, once a step for the whole model (it is in bench_steps).
Run: python -m benchmarks.bench_activations

Inputs of layers of ResNet-20 (batch 128) and ResNet-18 (batch 16), after ReLU. Ratios are to
``torch.fake_quantize_per_tensor_affine``, one fused operation each way, whose range is given and not observed.
``kept`` is what a forward leaves for the backward, besides its result. ``--quick``: one size and width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.alternatives import compiled
from benchmarks.harness import Case, measure
from benchmarks.memory import measure_memory
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from lightning_balq.nn.activation import ActivationQuantizer, settle_ranges_, update_ranges_

REFERENCE = "torch, given range"
SHAPES = {
    "ResNet-20, stage 1": (128, 16, 32, 32),
    "ResNet-18, stage 1": (16, 64, 56, 56),
    "ResNet-18, stage 4": (16, 512, 7, 7),
}
BITS = (2, 4, 8)

Forward = Callable[[Tensor], Tensor]


def run(options: Options) -> Iterator[list[Record]]:
    """Measure every size and width."""
    for layer in list(SHAPES)[:1] if options.quick else SHAPES:
        x = torch.randn(SHAPES[layer], generator=torch.Generator().manual_seed(0)).relu_()
        x = x.to(options.device).requires_grad_()
        for bits in (2,) if options.quick else BITS:
            forwards = quantizers(x, bits)
            cases = {name: forward_and_backward(forward, x) for name, forward in forwards.items()}
            measured = measure(cases, options.device, options.repeats, budget=options.budget, memory=True)
            group = records(measured.items(), {"layer": layer, "values": x.numel(), "bits": bits}, REFERENCE)
            for record in group:
                # Of the whole, only its gradient is left; what counts is what waits for the backward.
                record["kept_bytes"] = saved(forwards[record["case"]], x)
            yield group


def quantizers(x: Tensor, bits: int) -> dict[str, Forward]:
    """Ways to quantize an activation to ``2**bits`` levels between 0 and a range."""
    largest = 2**bits - 1
    step = float(x.detach().amax()) / largest
    return {
        REFERENCE: lambda x: torch.fake_quantize_per_tensor_affine(x, step, 0, 0, largest),
        "ActivationQuantizer": observing(bits, x),
        "torch, fused observer": torch_observing(bits, x.device),
        "op by op": lambda x: op_by_op(x, bits),
        "op by op, compiled": lambda x: compiled(op_by_op, bits, x.numel())(x, bits),
    }


def observing(bits: int, x: Tensor) -> Forward:
    """This library's quantizer in training, past its first batch."""
    quantizer = ActivationQuantizer(bits, "observed", "auto")
    quantizer(x, observe=True)
    update_ranges_([quantizer])
    settle_ranges_([quantizer])
    return lambda x: quantizer(x, observe=True)


def torch_observing(bits: int, device: torch.device) -> Forward:
    """The fused observer and fake-quantizer of ``torch.ao.quantization``."""
    from torch.ao import quantization as ao

    return ao.FusedMovingAvgObsFakeQuantize(
        observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=2**bits - 1, dtype=torch.quint8
    ).to(device)


def op_by_op(x: Tensor, bits: int) -> Tensor:
    """What a user would write: clip to the range of the batch, round, and let the gradient through."""
    largest = 2**bits - 1
    bound = x.detach().amax()
    scaled = torch.clamp(x / bound, 0, 1) * largest
    return (scaled + (scaled.round() - scaled).detach()) * (bound / largest)


def forward_and_backward(forward: Forward, x: Tensor) -> Case:
    """Return a call that quantizes ``x`` and computes its gradient."""
    gradient = torch.ones_like(x)
    return lambda: torch.autograd.grad(forward(x), x, gradient)


def saved(forward: Forward, x: Tensor) -> int:
    """Bytes that a forward leaves for the backward, besides its result."""
    return measure_memory(lambda: forward(x), x.device).kept - x.nbytes


BENCHMARK = Benchmark("bench_activations", __doc__, run, repeats=30, quick_repeats=10)

if __name__ == "__main__":
    BENCHMARK.main()
