"""Memory that a call takes.

On a CPU it is what torch's allocator reports to ``torch.profiler`` (``profile_memory=True``), whose trace lists every
allocation and release in order. Memory from elsewhere, such as a C++ vector's, does not show there; it does in how far
the resident memory of the process grows, on Linux, if it is large enough not to come from what the process holds in
reserve (64 MiB are). On CUDA it is what ``torch.cuda.max_memory_allocated`` counts.
"""

import gc
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Memory(NamedTuple):
    """Bytes of one call.

    Attributes:
        peak: most bytes held at once during the call beyond those held before; its result counts.
        kept: bytes still held when it has returned and its result is alive.
        resident: most by which the resident memory of the process grew; ``None`` on CUDA and where it is not known.
    """

    peak: int
    kept: int
    resident: int | None = None


def measure_memory(case: Callable[[], Any], device: torch.device) -> Memory:
    """Measure the memory of one call; call it once before, so that what is made only once does not count."""
    gc.collect()  # what is released during the call must have been allocated in it
    if device.type == "cuda":
        return _cuda_memory(case, device)
    return _cpu_memory(case)._replace(resident=resident_growth(case))


def resident_growth(case: Callable[[], Any], process: Path = Path("/proc/self")) -> int | None:
    """Most bytes by which a call makes the resident memory of the process grow, ``None`` where that is not known."""
    try:
        (process / "clear_refs").write_text("5")  # the peak starts from what is resident now
        before = _status(process, "VmRSS")
        result = case()
        after = _status(process, "VmHWM")
    except OSError:
        return None
    del result
    return max(0, after - before)


def resident_bytes(process: Path = Path("/proc/self")) -> int | None:
    """Bytes of the process that are in memory now, ``None`` where that is not known."""
    try:
        return _status(process, "VmRSS")
    except OSError:
        return None


def _status(process: Path, name: str) -> int:
    """Bytes of a line such as ``VmRSS:  1024 kB``."""
    lines = (process / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _cuda_memory(case: Callable[[], Any], device: torch.device) -> Memory:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = case()
    torch.cuda.synchronize(device)
    memory = Memory(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)
    del result
    return memory


def _cpu_memory(case: Callable[[], Any]) -> Memory:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = case()
    del result
    with tempfile.TemporaryDirectory() as root:
        trace = Path(root) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    return held(int(event["args"]["Bytes"]) for event in sorted(changes, key=lambda event: event["ts"]))


def held(changes: Iterable[int]) -> Memory:
    """Sum up allocations (positive) and releases (negative) in the order in which they were made."""
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return Memory(peak, level)
