"""Reports: one HTML file with everything in it, which asks for nothing else and executes nothing."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import chain
from math import isfinite
from pathlib import Path

from lightning_balq.cli.charts import histogram, line_chart
from lightning_balq.cli.records import STATISTICS, Series
from lightning_balq.cli.summary import Summary, WeightSummary
from lightning_balq.cli.tables import SUMMARY_COLUMNS, printable, summary_cells

ALL = "(all layers)"
LIMITS = {"overhead": (0.0,), "bin_utilization": (0.0, 1.0), "code_flip_rate": (0.0,)}
MEANINGS = {
    "overhead": "Share of a training step that was spent in the forward of the quantizers.",
    "effective_bitwidth": "Shannon entropy of the codes in bits: the width itself if all codes are used alike.",
    "bin_utilization": "Share of the codes that are used at all.",
    "imbalance": "How often the most frequent code occurs for once that the rarest does.",
    "code_flip_rate": "Share of the weights whose code has changed since the last record.",
}


def summary_page(summary: Summary, title: str) -> str:
    """Page on a checkpoint or a packed file."""
    mean, count = summary.effective_bitwidth, sum(weight.weights for weight in summary.weights)
    as_float = summary.other_bytes + 4 * count
    cards = [
        (f"{summary.total_bytes:,} bytes", f"packed; {as_float:,} with quantized weights as float32"),
        ("not known" if mean is None else f"{mean:.3f} bits", "effective bitwidth: entropy of the codes"),
        (
            f"{count:,} weights",
            f"quantized, in {len(summary.weights)} tensors; {len(summary.float_layers)} layers float",
        ),
    ]
    if summary.blend != 1:
        cards.append((f"{summary.blend:.0%} quantized", "training has not come to the quantized network yet"))
    known = [weight for weight in summary.weights if weight.counts is not None]
    rows = [summary_cells(weight) for weight in summary.weights]
    floats = [(name or "(the model)", reason) for name, reason in summary.float_layers.items()]
    return _page(
        title,
        _cards(cards),
        _section("Quantized weights", _table(SUMMARY_COLUMNS, rows, numeric=(4, 5, 6))),
        _section(
            "How often each code occurs",
            _note("Codes from the lowest level to the highest; dashed: all codes used alike."),
            _panels(map(_histogram, known)),
        ),
        _section(
            "What stays float",
            _table(["layer", "because"], floats),
            _note(f"Parameters and buffers beside the quantized weights: {summary.other_bytes:,} bytes."),
        ),
    )


def records_page(records: Sequence[Series], title: str) -> str:
    """Page on what a callback recorded."""
    steps = sorted({step for series in records for step in series.values})
    layers = dict.fromkeys(series.layer for series in records if series.layer is not None)
    overhead = sorted(filter(isfinite, chain(*(s.values.values() for s in records if s.statistic == "overhead"))))
    cards = [(f"{len(steps)} records", f"steps {steps[0]:,} to {steps[-1]:,}, {len(layers)} layers or parts of them")]
    if overhead:
        cards.insert(0, (f"{overhead[len(overhead) // 2]:.1%}", "of a step spent quantizing, median"))
    charts = [_chart(statistic, [each for each in records if each.statistic == statistic]) for statistic in STATISTICS]
    columns = [name for name in STATISTICS if any(series.statistic == name for series in records)]
    last = {(series.layer, series.statistic): next(reversed(series.values.values())) for series in records}
    rows = [
        [_named(layer), *("" if (value := last.get((layer, name))) is None else f"{value:.4g}" for name in columns)]
        for layer in [None, *layers]
    ]
    numeric = range(1, len(columns) + 1)
    return _page(
        title,
        _cards(cards),
        _section(
            "Over training", _note("Thick: all layers together; thin: each layer."), _panels(charts, "panels wide")
        ),
        _section("At the last record", _table(["layer", *map(_words, columns)], rows, numeric)),
    )


def _histogram(weight: WeightSummary) -> str:
    counts, effective = weight.counts or [], weight.effective_bitwidth
    caption = f"{weight.bits} bits" + ("" if effective is None else f", {effective:.3f} effective")
    extremes = f"rarest {min(counts):,}, most frequent {max(counts):,}"
    drawn = histogram(counts, f"codes of {printable(weight.name)}: {extremes}")
    return _figure(weight.name, drawn, f"{caption}; {extremes}")


def _chart(statistic: str, series: Sequence[Series]) -> str:
    if not series:
        return ""
    lines = {_named(each.layer): each.values for each in series}
    drawn = line_chart(lines, ALL, f"{_words(statistic)} over steps", LIMITS.get(statistic, ()))
    return _figure(_words(statistic), drawn, MEANINGS[statistic])


def _named(layer: str | None) -> str:
    return ALL if layer is None else printable(layer)


def _words(statistic: str) -> str:
    return statistic.replace("_", " ")


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """Text of any origin, as HTML that shows it."""
    return escape(printable(text))


def _page(title: str, *parts: str) -> str:
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>"
    )
    body = "\n".join([f"<h1>{_text(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section>\n<h2>{_text(title)}</h2>", *parts, "</section>"])


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _cards(cards: Iterable[tuple[str, str]]) -> str:
    shown = "".join(f"<div><b>{_text(number)}</b><span>{_text(text)}</span></div>" for number, text in cards)
    return f'<div class="cards">{shown}</div>'


def _figure(title: str, drawn: str, caption: str) -> str:
    return f"<figure><h3>{_text(title)}</h3>\n{drawn}\n<figcaption>{_text(caption)}</figcaption></figure>\n"


def _panels(figures: Iterable[str], kind: str = "panels") -> str:
    return f'<div class="{kind}">\n{"".join(figures)}</div>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="number"' if index in numeric else "" for index in range(len(cells)))
        return "".join(f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head, body = line("th", columns), "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
