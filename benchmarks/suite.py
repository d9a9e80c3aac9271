"""The benchmarks of speed and memory, which ``make bench`` runs and ``make bench-compare`` repeats."""

from benchmarks import (
    bench_activations,
    bench_deploy,
    bench_evaluation,
    bench_export,
    bench_recurrent,
    bench_scaling,
    bench_steps,
    bench_weights,
)
from benchmarks.program import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        bench_weights,
        bench_scaling,
        bench_activations,
        bench_evaluation,
        bench_steps,
        bench_recurrent,
        bench_deploy,
        bench_export,
    )
}
"""Name of a benchmark, which is that of its module."""
