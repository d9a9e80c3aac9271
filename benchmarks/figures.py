"""Figures drawn from records; a figure carries a digest of its data, so that a stale one is recognised.

Comparing data and not drawings leaves the version of matplotlib free.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.bars import last_runs, select
from benchmarks.harness import quartiles
from benchmarks.records import Record

MIB = 2**20
CASES = ("balanced mean", "balanced median", "uniform", "uniform, compiled")
COLORS = dict(zip(CASES, ("#0072b2", "#d55e00", "#009e73", "#555555"), strict=True))


@dataclass(frozen=True)
class Curve:
    """Points of one case, with a band where there are quartiles."""

    case: str
    x: list[int]
    low: list[float]
    median: list[float]
    high: list[float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes; y is logarithmic, and so is x, but for bits."""

    title: str
    x_label: str
    y_label: str
    curves: list[Curve]


def time_panels(records: Sequence[Record]) -> list[Panel]:
    """Time against weights, bits and layers."""
    return _panels(records, "milliseconds", _milliseconds)


def memory_panels(records: Sequence[Record]) -> list[Panel]:
    """Peak memory of a call, its result included, against weights, bits and layers."""
    return _panels(records, "peak memory, MiB", lambda record: [record["peak_bytes"] / MIB])


FIGURES: Mapping[str, Callable[[Sequence[Record]], list[Panel]]] = {
    "scaling_time": time_panels,
    "scaling_memory": memory_panels,
}
"""Name of a figure to the function that makes its panels from the records of ``bench_scaling``."""


def digest(data: Sequence[Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of everything that is drawn, which are dataclasses."""
    text = json.dumps([asdict(part) for part in data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def drawn_digest(path: Path) -> str | None:
    """Digest of what a file shows, ``None`` if there is no such file."""
    found = re.search(r"data digest ([0-9a-f]{16})", path.read_text()) if path.exists() else None
    return found[1] if found else None


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write panels side by side as SVG."""
    with saved_figure(path, panels, (3.3 * len(panels), 3.0)) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for curve in panel.curves:
                axes.plot(curve.x, curve.median, ".-", color=COLORS[curve.case], label=curve.case)
                axes.fill_between(curve.x, curve.low, curve.high, color=COLORS[curve.case], alpha=0.2, linewidth=0)
            axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, yscale="log")
            axes.set_xscale("linear" if panel.x_label == "bits" else "log")
            axes.grid(alpha=0.3)
        if any(panel.curves for panel in panels):
            figure.axes[0].legend(fontsize=7)


@contextmanager
def saved_figure(path: Path, data: Sequence[Any], size: tuple[float, float]) -> Iterator[Any]:
    """Give an empty figure of a size in inches to draw on, and write it as SVG with the digest of its data."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "lightning_balq", "svg.fonttype": "none", "font.size": 8}
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": f"data digest {digest(data)}"})


def _panels(records: Sequence[Record], y_label: str, values: Callable[[Record], list[float]]) -> list[Panel]:
    latest = last_runs(records)
    sweeps = (
        ("weights", {"bits": 4}, "one weight, 4 bits"),
        ("bits", {}, "one weight of 2.4 million values"),
        ("layers", {}, "4.2 million weights, 4 bits"),
    )
    return [
        Panel(title, sweep, y_label, _curves(select(latest, "bench_scaling", sweep=sweep, **fixed), sweep, values))
        for sweep, fixed, title in sweeps
    ]


def _curves(records: Sequence[Record], sweep: str, values: Callable[[Record], list[float]]) -> list[Curve]:
    curves = []
    for case in CASES:
        points = sorted((r["parameters"][sweep], *quartiles(values(r))[:3]) for r in records if r["case"] == case)
        if points:
            x, low, median, high = (list(column) for column in zip(*points, strict=True))
            curves.append(Curve(case, x, low, median, high))
    return curves


def _milliseconds(record: Record) -> list[float]:
    return [1000 * seconds for seconds in record["times"]]
