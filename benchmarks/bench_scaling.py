"""Time and memory of quantizing weights, by how many there are, by bits, and by the number of layers.

Question: do time and memory grow linearly with the number of weights, and how with bits and layers?
Not measured: the backward pass; memory outside torch's allocator for small weights.
Run: python -m benchmarks.bench_scaling

Three sweeps: 10^5 to 4 x 10^7 weights in one tensor at 2, 4 and 8 bits; 1 to 8 bits for 2.4 million weights; and 4.2
million weights in 1 to 1024 layers at 4 bits, quantized one after the other. All sizes of a sweep at one width are
measured in the same rounds. Peak memory is that of one call, its result included. ``--quick``: fewer points.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from torch import Tensor

from benchmarks.harness import Case, measure
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from benchmarks.weights import REFERENCE, gaussian, library

WEIGHTS = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 40_000_000)
WEIGHTS_BITS = (2, 4, 8)
BITS = tuple(range(1, 9))
BITS_WEIGHTS = 512 * 512 * 3 * 3
LAYERS = (1, 4, 16, 64, 256, 1024)
LAYERS_WEIGHTS = 2**22
LAYERS_BITS = 4

Point = tuple[str, int, int, int]
"""Sweep, weights, bits, layers."""


def run(options: Options) -> Iterator[list[Record]]:
    """Measure the three sweeps."""
    for bits in (4,) if options.quick else WEIGHTS_BITS:
        yield from sweep([("weights", weights, bits, 1) for weights in _some(WEIGHTS, options)], options)
    yield from sweep([("bits", BITS_WEIGHTS, bits, 1) for bits in _some(BITS, options)], options)
    layers = [("layers", LAYERS_WEIGHTS, LAYERS_BITS, layers) for layers in _some(LAYERS, options)]
    yield from sweep(layers, options)


def sweep(points: Sequence[Point], options: Options) -> Iterator[list[Record]]:
    """Measure all points of a sweep in the same rounds; return the records of each."""
    cases = {(point, name): case for point in points for name, case in _cases(point, options).items()}
    measured = measure(cases, options.device, options.repeats, budget=options.budget, memory=True)
    for point, group in groupby(measured.items(), key=lambda item: item[0][0]):
        parameters = dict(zip(("sweep", "weights", "bits", "layers"), point, strict=True))
        yield records([(name, measurement) for (_, name), measurement in group], parameters, REFERENCE)


def _cases(point: Point, options: Options) -> dict[str, Case]:
    _, weights, bits, layers = point
    tensors = [gaussian(weights // layers, device=options.device, seed=layer) for layer in range(layers)]
    parts = [library(tensor, bits) for tensor in tensors]
    return {name: _all([part[name] for part in parts]) for name in parts[0]}


def _all(cases: Sequence[Case]) -> Callable[[], list[Tensor]]:
    return lambda: [case() for case in cases]


def _some(values: Sequence[int], options: Options) -> Sequence[int]:
    """Return every second value in a quick run."""
    return values[::2] if options.quick else values


BENCHMARK = Benchmark("bench_scaling", __doc__, run, repeats=15, quick_repeats=5)

if __name__ == "__main__":
    BENCHMARK.main()
