"""Time of quantizing one weight, against other ways to do it.

Question: how much slower is balanced than uniform quantization, and than what a user would write?
Not measured: the backward pass (the gradient passes through unchanged), training, accuracy.
Run: python -m benchmarks.bench_weights

One weight of 512 x 512 x 3 x 3 values, the same tensor for all cases. Ratios are to the uniform quantizer that
``torch.compile`` makes of a user's few lines. ``--quick``: 2 and 4 bits per tensor, without the slow alternatives.
"""

from collections.abc import Iterator

from torch import Tensor

from benchmarks.alternatives import (
    FUSED_BITS,
    balanced_by_comparison,
    balanced_by_scatter,
    balanced_by_sort,
    compiled,
    straight_through,
    uniform,
)
from benchmarks.harness import Case, measure
from benchmarks.peers import weight_peers
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from benchmarks.weights import REFERENCE, gaussian, library
from lightning_balq.functional import balanced_fake_quantize

SHAPE = (512, 512, 3, 3)
BITS = (2, 3, 4, 8)


def run(options: Options) -> Iterator[list[Record]]:
    """Measure every width and granularity."""
    weight = gaussian(*SHAPE, device=options.device)
    for granularity in ("per_tensor",) if options.quick else ("per_tensor", "per_channel"):
        for bits in (2, 4) if options.quick else BITS:
            cases = fast_cases(weight, bits, per_channel=granularity == "per_channel")
            if not options.quick:
                cases |= other_cases(weight, bits, per_channel=granularity == "per_channel")
            measured = measure(cases, options.device, options.repeats, budget=options.budget)
            parameters = {"weights": weight.numel(), "granularity": granularity, "bits": bits}
            yield records(measured.items(), parameters, REFERENCE)


def fast_cases(weight: Tensor, bits: int, *, per_channel: bool) -> dict[str, Case]:
    """This library, uniform op by op, and the compiled balanced form."""
    cases = library(weight, bits, per_channel=per_channel)
    cases["uniform, op by op"] = straight_through(uniform, weight, bits, per_channel=per_channel)
    if bits <= FUSED_BITS:
        form = compiled(balanced_by_comparison, bits, weight.numel())
        cases["balanced, comparisons compiled"] = straight_through(form, weight, bits, per_channel=per_channel)
    return cases


def other_cases(weight: Tensor, bits: int, *, per_channel: bool) -> dict[str, Case]:
    """The slow alternatives, this library's plain form, and peers."""
    granularity = "per_channel" if per_channel else "per_tensor"
    return {
        "balanced, functional": lambda: balanced_fake_quantize(weight, bits, granularity=granularity),
        "balanced, scatter_add": straight_through(balanced_by_scatter, weight, bits, per_channel=per_channel),
        "balanced, sort": straight_through(balanced_by_sort, weight, bits, per_channel=per_channel),
        **weight_peers(weight, bits, per_channel=per_channel),
    }


BENCHMARK = Benchmark("bench_weights", __doc__, run, repeats=30, quick_repeats=10)

if __name__ == "__main__":
    BENCHMARK.main()
