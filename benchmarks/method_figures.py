"""Pictures of what the quantizers do to weights, for docs/method.md: computed here, by the quantizers themselves.

Nothing is drawn at random: the weights are quantiles of a distribution at evenly spaced probabilities, so that every
computer draws the same. A picture carries a digest of its data, by which a stale one is recognised.

Run: python -m benchmarks.method_figures            (draws what changed)
     python -m benchmarks.method_figures --check    (draws nothing; exit status 1 if anything is out of date)
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import digest, drawn_digest, saved_figure
from lightning_balq import BalancedQuantizer, UniformQuantizer
from lightning_balq.functional import code_histogram, effective_bitwidth
from lightning_balq.nn import WeightQuantizer

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
WEIGHTS = 2**17
DECIMALS = 3
"""Decimals that are compared: kernels and versions of torch may differ in the last bits of a number."""

METHODS: Mapping[str, Callable[[int], WeightQuantizer]] = {
    "uniform, max scale": lambda bits: UniformQuantizer(bits, scale="max"),
    "uniform, mean scale": lambda bits: UniformQuantizer(bits, scale="mean"),
    "balanced, mean center": lambda bits: BalancedQuantizer(bits, center="mean"),
    "balanced, median center": lambda bits: BalancedQuantizer(bits, center="median"),
}
DISTRIBUTIONS = {"Gaussian": "norm", "Laplace": "laplace", "Student t, 3 degrees of freedom": "t"}
WIDTHS = range(1, 9)
CODE_COLORS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00")
SHARES_AT = (-2.8, -0.75, 0.75, 2.8)
METHOD_COLORS = dict(zip(METHODS, ("#d55e00", "#e69f00", "#0072b2", "#009e73"), strict=True))


@dataclass(frozen=True)
class Bin:
    """One code of a quantizer: the weights that get it, and what they become."""

    low: float
    high: float
    share: float
    level: float


@dataclass(frozen=True)
class Partition:
    """What a quantizer makes of weights: the codes that occur, in order."""

    method: str
    bins: list[Bin]
    effective_bitwidth: float


@dataclass(frozen=True)
class Bitwidths:
    """Effective bitwidth at each width, for each method."""

    distribution: str
    bits: list[int]
    curves: dict[str, list[float]]


def weights_of(distribution: str) -> Tensor:
    """Quantiles of a distribution at the middles of equal parts of the probability."""
    from scipy import stats

    shape = (3,) if DISTRIBUTIONS[distribution] == "t" else ()
    probabilities = (np.arange(WEIGHTS) + 0.5) / WEIGHTS
    return torch.from_numpy(getattr(stats, DISTRIBUTIONS[distribution]).ppf(probabilities, *shape)).float()


def partitions() -> list[Partition]:
    """Gaussian weights at 2 bits, for each method."""
    weights = weights_of("Gaussian")
    return [_partition(method, make(2), weights) for method, make in METHODS.items()]


def bitwidths() -> list[Bitwidths]:
    """Effective bitwidth of each distribution at 1 to 8 bits, for each method."""
    found = []
    for distribution in DISTRIBUTIONS:
        weights = weights_of(distribution)
        curves = {
            method: [_rounded(effective_bitwidth(code_histogram(make(bits).codes(weights), bits))) for bits in WIDTHS]
            for method, make in METHODS.items()
        }
        found.append(Bitwidths(distribution, list(WIDTHS), curves))
    return found


def draw_partitions(data: Sequence[Partition], path: Path) -> None:
    """Draw a histogram for each method, coloured by code, with thresholds, levels and the share of each code."""
    with saved_figure(path, data, (8.0, 5.2)) as figure:
        weights = weights_of("Gaussian").numpy()
        for axes, partition in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, data, strict=True):
            edges = np.linspace(weights[0], weights[-1], 89)
            counts, _ = np.histogram(weights, edges, density=True)
            middles = (edges[:-1] + edges[1:]) / 2
            thresholds = [found.low for found in partition.bins[1:]]
            codes = np.searchsorted(thresholds, middles)
            for code, (found, color) in enumerate(zip(partition.bins, CODE_COLORS, strict=True)):
                inside = codes == code
                axes.bar(middles[inside], counts[inside], width=edges[1] - edges[0], color=color)
                axes.plot(found.level, -0.035, marker="^", color=color, markersize=9, clip_on=False)
                axes.text(SHARES_AT[code], 0.47, f"{100 * found.share:.1f} %", color=color, ha="center", weight="bold")
            for threshold in thresholds:
                axes.axvline(threshold, ymin=0.12, ymax=0.86, color="black", linestyle="--", linewidth=1)
            title = f"{partition.method}: {partition.effective_bitwidth:.2f} of 2 bits used"
            axes.set(title=title, ylim=(-0.075, 0.54), yticks=[])
            axes.spines[["left", "right", "top"]].set_visible(False)
        for axes in figure.axes[2:]:
            axes.set_xlabel("weight, in standard deviations")


def draw_staircases(data: Sequence[Partition], path: Path) -> None:
    """Draw what each weight becomes: the level of its bin, against the weight."""
    with saved_figure(path, data, (8.0, 3.3)) as figure:
        shown = [partition for partition in data if partition.method in ("uniform, max scale", "balanced, mean center")]
        for axes, partition in zip(figure.subplots(1, 2, sharex=True, sharey=True), shown, strict=True):
            edge = partition.bins[-1].level
            axes.plot([-edge, edge], [-edge, edge], color="#999999", linewidth=1)
            for found, color in zip(partition.bins, CODE_COLORS, strict=True):
                axes.plot(
                    [found.low, found.high], [found.level, found.level], color=color, linewidth=3, solid_capstyle="butt"
                )
            axes.set(title=partition.method, xlabel="weight, in standard deviations")
            levels = [found.level for found in partition.bins]
            axes.set_yticks(levels, [f"{level:.1f}" for level in levels])
            axes.grid(axis="y", alpha=0.4)
        figure.axes[0].set_ylabel("its level")


def draw_bitwidths(data: Sequence[Bitwidths], path: Path) -> None:
    """Draw effective bitwidth against bits, a panel for each distribution."""
    with saved_figure(path, data, (8.0, 3.3)) as figure:
        for axes, panel in zip(figure.subplots(1, len(data), sharey=True), data, strict=True):
            axes.plot(panel.bits, panel.bits, color="#999999", linewidth=1)
            for method, curve in panel.curves.items():
                axes.plot(panel.bits, curve, ".-", color=METHOD_COLORS[method], label=method)
            axes.set(title=panel.distribution, xlabel="bits", xticks=panel.bits, yticks=panel.bits, ylim=(0, 8.3))
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("effective bitwidth")
        figure.axes[0].legend(loc="upper left", fontsize=8)


FIGURES: Mapping[str, tuple[Callable[[], list[Any]], Callable[[Any, Path], None]]] = {
    "partitions": (partitions, draw_partitions),
    "staircases": (partitions, draw_staircases),
    "effective_bitwidth": (bitwidths, draw_bitwidths),
}
"""Name of a picture to the functions that compute its data and draw it."""


def update(folder: Path = FOLDER, *, check: bool = False) -> list[Path]:
    """Draw the pictures whose data changed, or only check them; return those that were out of date."""
    stale = []
    for name, (compute, draw) in FIGURES.items():
        data, path = compute(), folder / f"{name}.svg"
        if drawn_digest(path) != digest(data):
            stale.append(path)
            if not check:
                draw(data, path)
    return stale


def _partition(method: str, quantizer: WeightQuantizer, weights: Tensor) -> Partition:
    codes, levels = quantizer.codes(weights), quantizer.levels(weights)
    bins = []
    for code in codes.unique():
        inside = codes == code
        low, high = weights[inside].min(), weights[inside].max()
        bins.append(Bin(*map(_rounded, (low, high, inside.float().mean(), levels[inside][0]))))
    return Partition(method, bins, _rounded(effective_bitwidth(code_histogram(codes, quantizer.bits))))


def _rounded(value: Tensor) -> float:
    return round(float(value), DECIMALS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw or check the pictures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="draw nothing; exit status 1 if anything is out of date")
    options = parser.parse_args(arguments)
    stale = update(check=options.check)
    for path in stale:
        print(f"{'out of date' if options.check else 'drawn'}: {path}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
