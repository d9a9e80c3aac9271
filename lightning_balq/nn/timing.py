"""Time spent quantizing, measured on sampled steps only."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class QuantizationTimer:
    """Adds up the time of everything run under :meth:`measure`, on a CPU or a CUDA device.

    On CUDA the work is bracketed by events, and :meth:`seconds` waits for the device: once per sampled step.
    """

    def __init__(self) -> None:
        self._host = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[None]:
        """Count the time that the enclosed work takes on ``device``."""
        if device.type == "cuda":
            start, stop = _event(), _event()
            start.record()
            yield
            stop.record()
            self._events.append((start, stop))
        else:
            begin = time.perf_counter()
            yield
            self._host += time.perf_counter() - begin

    def seconds(self) -> float:
        """Seconds measured so far."""
        if self._events:
            torch.cuda.synchronize()
        milliseconds: float = sum(start.elapsed_time(stop) for start, stop in self._events)
        return self._host + milliseconds / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
