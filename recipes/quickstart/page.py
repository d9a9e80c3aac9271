"""The report: one HTML file with everything in it, which asks for nothing else."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from recipes.quickstart.drawing import drawing, variable
from recipes.quickstart.figures import accuracy_panel, bitwidth_panel, weight_panels
from recipes.quickstart.methods import CASES, METHODS, WIDTHS, Case
from recipes.quickstart.results import Results, Setup
from recipes.quickstart.summary import Comparison, Row, comparisons, table_rows
from recipes.quickstart.table import HEADINGS, count_seeds, row_cells, verdicts
from recipes.quickstart.wording import CAVEATS, EXAMPLE, FIGURES, LEAD, READ_DIFFERENCES, READ_RESULTS
from recipes.statistics import format_p

NARROW, *WIDE = (f"W{bits}A{bits}" for bits in WIDTHS)


def report_page(results: Results) -> str:
    """The report as HTML."""
    rows, families = table_rows(results), comparisons(results)
    title = "Balanced quantization on handwritten digits"
    body = [
        _header(title, results, rows, families),
        _results_section(results, rows, families),
        *_figure_sections(results),
        _setup_section(results.setup),
        _section("Use it in your own Trainer", f"<pre><code>{escape(EXAMPLE)}</code></pre>"),
        _section("Caveats", _list(CAVEATS)),
    ]
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_style()}</style>"
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{"".join(body)}</body>\n</html>\n'


def _style() -> str:
    colours = "".join(f"  {variable(m)}: color-mix(in srgb, {m.colour}, white var(--lift));\n" for m in METHODS)
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8") + f":root {{\n{colours}}}\n"


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section>\n<h2>{escape(title)}</h2>", *parts, "</section>\n"])


def _list(sentences: Iterable[str]) -> str:
    items = (escape(sentence).replace(" = ", "&nbsp;=&nbsp;") for sentence in sentences)
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


# ---- header ----------------------------------------------------------------------------------------------------------


def _header(title: str, results: Results, rows: list[Row], families: list[list[Comparison]]) -> str:
    lead = LEAD.format(runs=len(results.runs), bits=" or ".join(map(str, WIDTHS)))
    cards = "".join(
        f"<div><b>{escape(number)}</b><span>{escape(text)}</span></div>" for number, text in _findings(rows, families)
    )
    return f'<header>\n<h1>{title}</h1>\n<p class="lead">{lead}</p>\n<div class="findings">{cards}</div>\n</header>\n'


def _findings(rows: list[Row], families: list[list[Comparison]]) -> Iterable[tuple[str, str]]:
    """Three numbers to remember, whatever they are."""
    found = {row.case: row for row in rows}
    uniform, balanced = found[f"{NARROW} uniform, max scale"], found[f"{NARROW} balanced, median center"]
    yield (
        f"{balanced.effective_bitwidth:.2f} against {uniform.effective_bitwidth:.2f}",
        f"effective bitwidth at {NARROW}: {balanced.label}, against {uniform.label}",
    )
    narrow = sorted((row for row in rows if row.width == NARROW), key=lambda row: row.accuracy)
    yield (
        f"{narrow[0].accuracy:.1f} to {narrow[-1].accuracy:.1f} %",
        f"test accuracy at {NARROW}, from {narrow[0].label} to {narrow[-1].label}; float: {rows[0].accuracy:.1f} %",
    )
    tested = [item for family in families[1:] for item in family]
    better = sum(item.distinguishable and item.difference > 0 for item in tested)
    worse = sum(item.distinguishable and item.difference < 0 for item in tested)
    yield (
        f"{better} better, {worse} worse",
        f"accuracy of balanced against uniform rows, {len(tested)} comparisons; the others are not distinguishable",
    )


# ---- tables ----------------------------------------------------------------------------------------------------------


def _results_section(results: Results, rows: list[Row], families: list[list[Comparison]]) -> str:
    read = READ_RESULTS.format(seeds=count_seeds(rows[0].n), float_bytes=f"{rows[0].float_bytes:,}")
    return _section(
        "Results",
        f"<p>{escape(read)}</p>",
        _table(HEADINGS, [(CASES[row.case], [(cell, "") for cell in row_cells(row)[2:]]) for row in rows]),
        f'<p class="note">Float in every row: {escape(results.setup.float_layers)}, biases and batch norm.</p>',
        "<h3>Differences in accuracy, in points</h3>",
        f"<p>{escape(READ_DIFFERENCES)}</p>",
        _differences_table(families),
        _list(verdicts(families)),
    )


def _table(headings: Sequence[str], rows: Iterable[tuple[Case, list[tuple[str, str]]]]) -> str:
    """Table of cells, each a text and a class, behind the width and method of a case; a group for each width."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    groups = []
    for width, group in groupby(rows, key=lambda row: row[0].width):
        lines = "".join(
            f"<tr><td>{width}</td><td>{_method(case)}</td>"
            + "".join(f'<td class="{kind}">{escape(text)}</td>' for text, kind in cells)
            + "</tr>\n"
            for case, cells in group
        )
        groups.append(f"<tbody>\n{lines}</tbody>\n")
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n{"".join(groups)}</table></div>'


def _method(case: Case) -> str:
    """Label of a method behind a dot of its colour."""
    colour = f"color: var({variable(case.method)})"
    return f'<span class="dot" style="{colour}"></span>{escape(case.method.label)}'


def _differences_table(families: list[list[Comparison]]) -> str:
    baselines = [CASES[family[0].baseline].method.label for family in families]
    found = {(item.case, CASES[item.baseline].method.label): item for family in families for item in family}
    rows = [
        (CASES[item.case], [_difference(found.get((item.case, baseline))) for baseline in baselines])
        for item in families[0]
    ]
    return _table(["W/A", "method", *("against\n" + baseline.replace(", ", ",\n") for baseline in baselines)], rows)


def _difference(item: Comparison | None) -> tuple[str, str]:
    if item is None:
        return "", ""
    p = "not tested" if item.p is None else format_p(item.p)
    return f"{item.difference:+.2f} ({p})", "strong" if item.distinguishable else "weak"


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figure_sections(results: Results) -> list[str]:
    with drawing():
        weights = [(_method(case), drawn) for case, drawn in weight_panels(results, WIDTHS[0])]
        bitwidths = [(f"W{bits}A{bits}", bitwidth_panel(results, bits)) for bits in WIDTHS]
        accuracies = [(f"W{bits}A{bits}", accuracy_panel(results, bits)) for bits in WIDTHS]
    layer = next(run.weights.layer for run in results.runs if run.weights is not None)
    where = f"{layer} at {NARROW}, seed {results.setup.seeds[0]}"
    return [
        _figure(f"Which levels are used: {where}", weights, FIGURES["weights"], 250),
        _figure("Effective bitwidth during training", bitwidths, FIGURES["bitwidth"], 480),
        _figure("Accuracy against bits", accuracies, FIGURES["accuracy"], 480),
    ]


def _figure(title: str, panels: Iterable[tuple[str, str]], caption: str, width: int) -> str:
    shown = "".join(f"<div><h3>{heading}</h3>\n{drawn}</div>\n" for heading, drawn in panels)
    return _section(
        title,
        f'<figure style="--panel-width: {width}px">\n<div class="panels">\n{shown}</div>',
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>",
    )


# ---- setup -----------------------------------------------------------------------------------------------------------


def _setup_section(setup: Setup) -> str:
    entries = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>\n" for key, text in _describe(setup).items())
    calls = "".join(
        f"<dt>{_method(CASES[name])}</dt><dd><code>{escape(call)}</code></dd>\n"
        for name, call in setup.calls.items()
        if CASES[name].width == NARROW
    )
    return _section(
        "Setup",
        f"<dl>\n{entries}</dl>",
        f"<h3>The callback of each row at {NARROW}, with the defaults that matter</h3>",
        f"<p>The same at {' and '.join(WIDE)}. Activations are the inputs of the quantized layers.</p>",
        f"<dl>\n{calls}</dl>",
    )


def _describe(setup: Setup) -> dict[str, str]:
    layers = (
        f"{layer.name} ({layer.type}, {layer.weights:,} weights{', float' if layer.reason else ''})"
        for layer in setup.layers
    )
    return {
        "data": f"handwritten digits of scikit-learn, 8x8 pixels: {setup.train_images} to train, "
        f"{setup.test_images} to test, the same in every run",
        "network": f"{', '.join(layers)}; batch norm after each convolution",
        "training": f"from scratch, {setup.epochs} epochs or {setup.steps} steps of {setup.batch_size} images, Adam "
        f"from {setup.learning_rate:g} on a cosine to 0; the network after the last step is tested",
        "seeds": f"{', '.join(map(str, setup.seeds))}; a seed gives every row the same initial weights and batches",
        "overhead": "steps of all rows in turn, in one process while nothing else of this program runs; without the "
        "Trainer's own time, which is the same for all; the ratio is to float's step in the same round",
        "processor": f"CPU ({setup.processor}); {setup.workers} processes, one thread each",
        "versions": ", ".join(f"{name} {version}" for name, version in setup.versions.items()),
    }
