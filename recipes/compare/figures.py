"""Figures from records: metric against bits and against bytes, and the course of training."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from recipes.compare.cells import FLOAT, Width
from recipes.compare.records import METRICS, Record
from recipes.compare.summary import Row, metric_of, rows_of, scale
from recipes.statistics import deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[str, Any] = {"svg.hashsalt": "lightning_balq", "svg.fonttype": "none", "font.size": 8}
MARKERS = "osD^v<>pPXh*dH"
COLUMNS = 3


def draw(records: Sequence[Record], folder: Path, prefix: str) -> list[Path]:
    """Draw the figures of one table; return the files."""
    import matplotlib as mpl  # not at the top: nothing else needs it

    rows = rows_of(records)
    with mpl.rc_context(STYLE):
        figures = {
            "bits": bits_figure(rows, metric_of(records)),
            "bytes": bytes_figure(rows, metric_of(records)),
            "curves": curves_figure(rows, metric_of(records)),
        }
        paths = []
        for name, figure in figures.items():
            paths.append(folder / f"{prefix}{name}.svg")
            figure.savefig(paths[-1], format="svg", metadata={"Date": None})
    return paths


def bits_figure(rows: Sequence[Row], metric: str | None) -> "Figure":
    """Metric against bits of weights; a panel for each treatment of activations, the float network as a band."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.method != FLOAT and row.results():
            panels.setdefault(_activations(row.width), []).append(row)
    figure, axes = _panels(max(len(panels), 1), share_y=True)
    for panel, (title, chosen) in zip(axes, sorted(panels.items()), strict=False):
        for method, style in _styles(rows).items():
            points = [row for row in chosen if row.method == method]
            values = [list(row.results().values()) for row in points]
            bits = [row.width.weight_bits for row in points]
            spreads = [deviation(v) or 0.0 for v in values]
            if points:
                panel.errorbar(bits, [fmean(v) for v in values], spreads, label=method, capsize=2, **style)
        _draw_float(panel, rows)
        panel.set(title=title, xlabel="bits of weights")
        panel.set_xticks(sorted({row.width.weight_bits or 0 for row in chosen}))
    return _finished(figure, axes, metric)


def bytes_figure(rows: Sequence[Row], metric: str | None) -> "Figure":
    """Metric against bytes of all parameters, each method a line through its widths."""
    figure, axes = _panels(1)
    for method, style in (_styles(rows) | {FLOAT: {"color": "black", "marker": "s", "ls": "none"}}).items():
        points = sorted((row for row in rows if row.method == method and row.results()), key=_size)
        values = [list(row.results().values()) for row in points]
        if points:
            spreads = [deviation(v) or 0.0 for v in values]
            means = [fmean(v) for v in values]
            axes[0].errorbar([_size(row) for row in points], means, spreads, label=method, capsize=2, **style)
    axes[0].set(xlabel="bytes of all parameters", xscale="log")
    return _finished(figure, axes, metric)


def curves_figure(rows: Sequence[Row], metric: str | None) -> "Figure":
    """Validation metric after each epoch, mean over seeds; a panel for each width, the float network in all."""
    name = METRICS[metric][0] if metric is not None else "val_loss"
    widths = [width for width in dict.fromkeys(row.width for row in rows) if width.weight_bits is not None]
    figure, axes = _panels(max(len(widths), 1))
    styles = {method: {**style, "marker": ""} for method, style in _styles(rows).items()}
    styles[FLOAT] = {"color": "black", "lw": 1.5}
    for panel, width in zip(axes, widths, strict=False):
        for row in rows:
            curve = _mean_curve(row, name) if row.width in (width, Width(None, None)) else []
            if curve:
                panel.plot(*zip(*curve, strict=True), label=row.method, **styles[row.method])
        panel.set(title=str(width), xlabel="epoch")
    return _finished(figure, axes, name)


def _mean_curve(row: Row, name: str) -> list[tuple[int, float]]:
    """Epoch and mean over the runs that have it."""
    values: dict[int, list[float]] = {}
    for run in row.runs.values():
        for epoch in run["curve"]:
            if epoch.get(name) is not None:
                values.setdefault(epoch["epoch"] + 1, []).append(scale(name) * epoch[name])
    return [(epoch, fmean(found)) for epoch, found in sorted(values.items())]


def _activations(width: Width) -> str:
    if width.activation_bits is None:
        return "activations float"
    same = width.activation_bits == width.weight_bits
    return "activations as weights" if same else f"activations of {width.activation_bits} bits"


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each quantized method, the same in all figures."""
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors
    names = sorted({row.method for row in rows} - {FLOAT})
    return {
        name: {"color": colours[index % len(colours)], "marker": MARKERS[index % len(MARKERS)], "ms": 3, "lw": 1}
        for index, name in enumerate(names)
    }


def _panels(count: int, *, share_y: bool = False) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    columns = min(count, COLUMNS)
    lines = -(-count // columns)
    figure = Figure(figsize=(3.6 * columns + 1.8, 3.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=share_y)
    axes = [axes for line in grid for axes in line]
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _draw_float(axes: "Axes", rows: Sequence[Row]) -> None:
    values = [value for row in rows if row.method == FLOAT for value in row.results().values()]
    if values:
        spread = deviation(values) or 0.0
        axes.axhspan(fmean(values) - spread, fmean(values) + spread, color="black", alpha=0.12, lw=0)
        axes.axhline(fmean(values), color="black", lw=0.8, label=FLOAT)


def _finished(figure: "Figure", axes: Sequence["Axes"], metric: str | None) -> "Figure":
    """Label the axis of the metric, and put one legend beside all panels."""
    axes[0].set_ylabel(f"{metric or 'metric'}{' %' if scale(metric) == 100 else ''}".replace("_", " "))
    labels = {}
    for panel in axes:
        panel.grid(alpha=0.3)
        handles, names = panel.get_legend_handles_labels()
        labels.update(zip(names, handles, strict=True))
    if labels:
        names = sorted(labels, key=lambda name: (name != FLOAT, name))
        figure.legend([labels[name] for name in names], names, loc="outside right upper", fontsize=7)
    return figure


def _size(row: Row) -> float:
    return row.values("bytes")[0]
