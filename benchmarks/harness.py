"""Time and memory of several ways to do the same thing, measured side by side.

On a machine that does other work too, times drift by more than the differences asked about. So every round runs each
case once, in shuffled order, and what is reported is the ratio of two cases in the same round: its median and quartiles
over the rounds. Every time is kept.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, NamedTuple, TypeVar

import torch

from benchmarks.memory import Memory, measure_memory
from benchmarks.records import Record

Case = Callable[[], Any]
Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)

LEAST_SECONDS = 0.005
"""A quicker case is called several times for one time, which is their mean: clocks and switches cost microseconds."""

LEAST_ROUNDS = 3
"""Rounds that even the slowest case takes part in."""

SLOW_SECONDS = 0.5
"""A case this slow is warm after two calls."""

WARM_UP_CALLS = 3


class Quartiles(NamedTuple):
    """Quartiles of ``n`` values; the median is what is reported, the other two are its spread."""

    low: float
    median: float
    high: float
    n: int


@dataclass(frozen=True)
class Measurement:
    """What was measured of one case.

    Attributes:
        times: seconds of one call, by round.
        calls: calls whose mean each of them is.
        first_seconds: the first call in this process, with compilation and all.
        memory: of one call, where asked.
    """

    times: list[float]
    calls: int
    first_seconds: float
    memory: Memory | None = None

    def fields(self) -> Record:
        """Return it as the fields of a record."""
        low, median, high, n = quartiles(self.times)
        record: Record = {
            "n": n,
            "seconds": [_rounded(value) for value in (low, median, high)],
            "times": [_rounded(value) for value in self.times],
            "calls": self.calls,
            "first_seconds": _rounded(self.first_seconds),
        }
        if self.memory is not None:
            record |= {"peak_bytes": self.memory.peak, "kept_bytes": self.memory.kept}
            record["resident_bytes"] = self.memory.resident
        return record


def measure(
    cases: Mapping[Key, Case],
    device: torch.device,
    repeats: int,
    *,
    budget: float = math.inf,
    memory: bool = False,
    clock: Clock = time.perf_counter,
) -> dict[Key, Measurement]:
    """Measure the time of each case, and its memory if asked.

    Args:
        cases: what to call, by a key of any kind.
        device: where the work is done; waited for before a clock is read.
        repeats: number of rounds.
        budget: seconds after which a case takes part in no further round, if it has taken part in three.
        memory: also measure the memory of one call, apart from its time.
        clock: seconds since some point in time.
    """
    first = {key: timed(case, 1, device, clock) for key, case in cases.items()}
    calls = {key: _warm_up(case, device, clock) for key, case in cases.items()}
    samples = {key: _sample(case, calls[key], device, clock) for key, case in cases.items()}
    times = interleave(samples, repeats, budget=budget)
    used = {key: measure_memory(case, device) if memory else None for key, case in cases.items()}
    return {key: Measurement(times[key], calls[key], first[key], used[key]) for key in cases}


def interleave(
    samples: Mapping[Key, Callable[[], float]], repeats: int, *, budget: float = math.inf, seed: int = 0
) -> dict[Key, list[float]]:
    """Take one sample of each case in each round, in an order shuffled anew; return them by round.

    A case that has used up its budget leaves: its times are those of the first rounds, so that times of two cases pair
    up by their index.
    """
    order = random.Random(seed)
    times: dict[Key, list[float]] = {key: [] for key in samples}
    for _ in range(repeats):
        present = [key for key in samples if len(times[key]) < LEAST_ROUNDS or sum(times[key]) < budget]
        order.shuffle(present)
        for key in present:
            times[key].append(samples[key]())
    return times


def timed(case: Case, calls: int, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Return the mean seconds of some calls."""
    synchronize(device)
    begin = clock()
    for _ in range(calls):
        case()
    synchronize(device)
    return (clock() - begin) / calls


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of one or more values."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0], 1)
    return Quartiles(*quantiles(values, n=4, method="inclusive"), n=len(values))


def ratios(times: Sequence[float], reference: Sequence[float]) -> Quartiles:
    """Quartiles of the ratio of two cases in the same round, over the rounds in which both took part."""
    return quartiles([one / other for one, other in zip(times, reference, strict=False)])


def ratio(records: Sequence[Record], case: str, reference: str) -> Quartiles:
    """Ratio of two cases among the records of one run with the same parameters."""
    times = {record["case"]: record["times"] for record in records}
    return ratios(times[case], times[reference])


def _warm_up(case: Case, device: torch.device, clock: Clock) -> int:
    """Call a case until it is warm; return how many calls make one time."""
    for _ in range(WARM_UP_CALLS):
        seconds = timed(case, 1, device, clock)
        if seconds > SLOW_SECONDS:
            break
    return max(1, min(1000, math.ceil(LEAST_SECONDS / max(seconds, 1e-9))))


def _sample(case: Case, calls: int, device: torch.device, clock: Clock) -> Callable[[], float]:
    def sample() -> float:
        collects = gc.isenabled()
        gc.disable()
        try:
            return timed(case, calls, device, clock)
        finally:
            if collects:
                gc.enable()

    return sample


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
