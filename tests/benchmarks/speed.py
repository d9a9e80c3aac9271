"""Records of speed made up for tests."""

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Measurement
from benchmarks.memory import Memory
from benchmarks.records import Record

WHERE = {
    "device": "cpu", "threads": 2, "torch": "2.13.0", "lightning": "3", "commit": "0123456789", "dirty": False,
    "sources": "abc",
}  # fmt: skip


def record(
    bench: str, case: str, times: Sequence[float], *, reference: str = "float", run: str = "1", **parameters: Any
) -> Record:
    fields = Measurement(list(times), calls=1, first_seconds=9.0, memory=Memory(12, 4)).fields()
    return {
        "parameters": parameters,
        "case": case,
        "reference": reference,
        **fields,
        "bench": bench,
        "run": run,
        **WHERE,
    }


def scaling(case: str, weights: int, seconds: float, *, bits: int = 4, sweep: str = "weights", peak: int = 3) -> Record:
    """Record of a point whose time is the same in both rounds and whose peak is ``peak`` weight-sized buffers."""
    made = record(
        "bench_scaling", case, [seconds] * 2, reference="uniform, compiled", sweep=sweep, weights=weights, bits=bits,
        layers=1,
    )  # fmt: skip
    return made | {"peak_bytes": 4 * weights * peak, "kept_bytes": 4 * weights}
