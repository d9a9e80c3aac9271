"""The figures of the report: each is a few panels of fixed size, which the page arranges as its width allows."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from recipes.quickstart.drawing import INK, MUTED, figure, svg
from recipes.quickstart.methods import CASES, FLOAT, QUANTIZED, Case, Method
from recipes.quickstart.results import Results, Run, Weights
from recipes.statistics import deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = 11
HEIGHT = 300


def weight_panels(results: Results, bits: int) -> list[tuple[Case, str]]:
    """Distribution of one layer's float weights and the levels they are quantized to, for float and each method."""
    cases = [CASES[FLOAT.label], *(Case(method, bits) for method in QUANTIZED)]
    weights = {run.case: run.weights for run in results.runs if run.weights is not None}
    reach = max(abs(value) for case in cases for value in (*weights[case.name].edges, *weights[case.name].levels))
    return [(case, _weight_panel(case, weights[case.name], 1.08 * reach)) for case in cases]


def _weight_panel(case: Case, weights: Weights, reach: float) -> str:
    drawn = figure(250, 210, left=0.02, right=0.98, bottom=0.11, top=0.99, hspace=0.12)
    before, after = drawn.subplots(2, 1, sharex=True)
    before.set_xlim(-reach, reach)
    for axes in (before, after):
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    before.tick_params(bottom=False)
    after.tick_params(labelsize=SMALL)
    after.locator_params(axis="x", nbins=5)
    _draw_float_weights(before, case, weights)
    if weights.levels:
        _draw_levels(after, case, weights)
    else:
        _corner(after, "not quantized")
    return svg(drawn, f"{case.name}: weights of {weights.layer} before and after quantization")


def _draw_float_weights(axes: "Axes", case: Case, weights: Weights) -> None:
    """Histogram whose shade changes from code to code."""
    floor = [0] * len(weights.counts[0])
    for code, counts in enumerate(weights.counts):
        top = [below + count for below, count in zip(floor, counts, strict=True)]
        shade = 0.85 if code % 2 else 0.45
        axes.stairs(top, weights.edges, baseline=floor, fill=True, color=case.method.colour, alpha=shade, lw=0)
        floor = top
    axes.set_ylim(0, 1.12 * max(floor))
    _corner(axes, "float weights")


def _draw_levels(axes: "Axes", case: Case, weights: Weights) -> None:
    """One bar for each level, as high as the share of the weights that is on it."""
    left, right = axes.get_xlim()
    width = right - left
    places = spread(weights.levels, 0.125 * width, left + 0.05 * width, right - 0.05 * width)
    for level, share, place in zip(weights.levels, weights.shares, places, strict=True):
        axes.bar(level, share, 0.02 * width, color=case.method.colour, lw=0)
        axes.text(place, share + 0.03, f"{100 * share:.0f}%", ha="center", va="bottom", color=INK, fontsize=SMALL)
    axes.set_ylim(0, 0.8)
    axes.plot(weights.levels, [0] * len(weights.levels), "|", color=case.method.colour, ms=8, clip_on=False)
    _corner(axes, "levels")


def _corner(axes: "Axes", text: str) -> None:
    axes.text(0.0, 0.98, text, transform=axes.transAxes, ha="left", va="top", color=MUTED, fontsize=SMALL)


def bitwidth_panel(results: Results, bits: int) -> str:
    """Effective bitwidth over training steps: mean over seeds, and the range that they span."""
    drawn = figure(520, HEIGHT, left=0.07, right=0.57, bottom=0.15, top=0.97)
    axes = drawn.subplots()
    ends = []
    for method in QUANTIZED:
        curves = [run.effective_bitwidth for run in _runs(results, Case(method, bits))]
        steps = [step for step, _ in curves[0]]
        values = [[value for _, value in at_step] for at_step in zip(*curves, strict=True)]
        lowest, highest = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(steps, lowest, highest, color=method.colour, alpha=0.2, lw=0)
        axes.plot(steps, [fmean(v) for v in values], color=method.colour, lw=1.8)
        ends.append((fmean(values[-1]), method))
    bottom = min(bits - 1, math.floor(axes.get_ylim()[0]))
    axes.set(xlim=(0, steps[-1]), ylim=(bottom, bits + 0.04 * (bits - bottom)), xlabel="training step")
    axes.set_yticks([bits - half / 2 for half in range(2 * (bits - bottom) + 1)])
    axes.axhline(bits, color=MUTED, lw=0.8, ls=(0, (2, 3)), zorder=0)
    _label_ends(axes, ends)
    return svg(drawn, f"Effective bitwidth over training steps at W{bits}A{bits}")


def _label_ends(axes: "Axes", ends: list[tuple[float, Method]]) -> None:
    """Label each line at its right end, as far from its neighbours as letters are high."""
    low, high = axes.get_ylim()
    height = HEIGHT * axes.get_position().height
    ends = sorted(ends, key=lambda end: end[0])
    places = spread([value for value, _ in ends], 17 * (high - low) / height, low, high)
    for (value, method), place in zip(ends, places, strict=True):
        axes.annotate(
            f"{value:.2f}  {method.label}",
            xy=(1, value),
            xytext=(1.08, place),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            color=method.colour,
            arrowprops={
                "arrowstyle": "-", "color": method.colour, "lw": 0.8, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0
            },
        )  # fmt: skip


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending values as little as possible, between two limits, so that neighbours are ``gap`` apart."""
    # Without their gaps, the places sought must only ascend: the least-squares solution pools those that do not.
    pools: list[list[float]] = []
    for index, value in enumerate(values):
        pools.append([value - index * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    highest = high - (len(values) - 1) * gap
    packed = [min(max(fmean(pool), low), highest) for pool in pools for _ in pool]
    return [place + index * gap for index, place in enumerate(packed)]


def accuracy_panel(results: Results, bits: int) -> str:
    """Accuracy of each run, with mean and standard deviation; the panels of all widths share their axis."""
    drawn = figure(520, HEIGHT, left=0.36, right=0.9, bottom=0.15, top=0.97)
    axes = drawn.subplots()
    cases = [CASES[FLOAT.label], *(Case(method, bits) for method in QUANTIZED)]
    for place, case in enumerate(cases):
        _draw_accuracies(axes, place, case, [run.accuracy for run in _runs(results, case)])
    floats = [run.accuracy for run in _runs(results, cases[0])]
    half = deviation(floats) or 0
    axes.axvspan(fmean(floats) - half, fmean(floats) + half, color=FLOAT.colour, alpha=0.15, lw=0, zorder=0)
    axes.axvline(fmean(floats), color=FLOAT.colour, lw=0.8, zorder=0)
    every = [run.accuracy for run in results.runs]
    margin = 0.05 * (max(every) - min(every)) or 1
    axes.set(xlim=(min(every) - margin, max(every) + margin), ylim=(len(cases) - 0.4, -0.6), xlabel="test accuracy, %")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    return svg(drawn, f"Test accuracy of each run at W{bits}A{bits}")


def _draw_accuracies(axes: "Axes", place: int, case: Case, values: list[float]) -> None:
    colour, mean, half = case.method.colour, fmean(values), deviation(values) or 0
    axes.plot(values, [place + 0.2] * len(values), "o", color=colour, alpha=0.5, ms=5, mew=0, clip_on=False)
    axes.plot([mean - half, mean + half], [place, place], color=colour, lw=2, solid_capstyle="butt")
    axes.plot(mean, place, "o", color=colour, ms=8)
    across = axes.get_yaxis_transform()
    axes.text(-0.04, place + 0.05, case.method.label, transform=across, ha="right", va="center", color=colour)
    axes.text(1.03, place + 0.05, f"{mean:.2f}", transform=across, ha="left", va="center", color=colour)


def _runs(results: Results, case: Case) -> list[Run]:
    return [run for run in results.runs if run.case == case.name]
