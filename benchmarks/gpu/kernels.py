"""Where the time of a quantized training step goes, kernel by kernel: a picture, and the trace behind it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.figures import saved_figure
from benchmarks.gpu.steps import Size, network, step
from benchmarks.program import Options
from benchmarks.records import Record

CASE = "balanced W4A4"
SHOWN = 20
"""Kernels that the picture and the record name; the others are added up."""

WARM_UP_STEPS = 5


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel in a step."""

    name: str
    seconds: float
    calls: int


def run(name: str, size: Size, options: Options, folder: Path) -> Record:
    """Profile one step; write ``profile.json``, a trace for ``chrome://tracing``, and ``profile.svg`` into a folder.

    Returns:
        The kernels that took longest, operators on a CPU, with their seconds and calls.
    """
    device = options.device
    images = torch.randn(size.batch, 3, size.side, size.side, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (size.batch,), device=device)
    call = step(network(name, CASE, device, compiled=False), images, labels)
    for _ in range(WARM_UP_STEPS):
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "profile.json"))
    found = longest(profiler, device)
    draw(found, f"{name}, {CASE}, one training step", folder / "profile.svg")
    parameters = {"network": name, "batch": size.batch, "side": size.side}
    return {"parameters": parameters, "case": CASE, "kernels": [asdict(kernel) for kernel in found]}


def longest(profiler: profile, device: torch.device) -> list[Kernel]:
    """Kernels by their time, the longest first, and behind them the others together."""
    on_gpu = device.type == "cuda"
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    # What a program annotates, such as the step of an optimizer, is no kernel, but holds some.
    rows = [row for row in profiler.key_averages() if row.device_type == kind and not row.is_user_annotation]
    found = [
        Kernel(row.key, (row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e6, row.count)
        for row in rows
    ]
    ordered = sorted(found, key=lambda kernel: -kernel.seconds)
    shown, rest = ordered[:SHOWN], ordered[SHOWN:]
    others = Kernel(f"{len(rest)} others", sum(row.seconds for row in rest), sum(row.calls for row in rest))
    return [*shown, others] if rest else shown


def draw(kernels: Sequence[Kernel], title: str, path: Path) -> None:
    """Draw one bar for each kernel."""
    total = sum(kernel.seconds for kernel in kernels)
    places = range(len(kernels))
    with saved_figure(path, kernels, (8.0, 0.22 * len(kernels) + 0.8)) as figure:
        axes = figure.add_subplot()
        axes.barh(places, [1000 * kernel.seconds for kernel in kernels], color="#0072b2")
        axes.set_yticks(places, [f"{_short(kernel.name)}, {kernel.calls} calls" for kernel in kernels], fontsize=6)
        axes.invert_yaxis()
        axes.set(xlabel="milliseconds", title=f"{title}: {1000 * total:.1f} ms")


def _short(name: str, length: int = 60) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
