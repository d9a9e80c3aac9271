"""Tables of the command line, for people."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_balq.cli.comparison import Comparison
from lightning_balq.cli.summary import Summary, WeightSummary


def summary_table(summary: Summary, title: str) -> Table:
    """Table of what a file holds."""
    columns = ["weight", "W bits", "A bits", "shape", "weights", "bytes", "effective bits", "method"]
    table = _table(title, columns, numeric=(4, 5, 6))
    for weight in summary.weights:
        table.add_row(*_cells(weight))
    table.add_section()
    for name, reason in summary.float_layers.items():
        table.add_row(*_plain(name or "(the model)", "float", "", "", "", "", "", reason), style="dim")
    table.add_row(*_plain("everything else", "float", "", "", "", f"{summary.other_bytes:,}", "", ""), style="dim")
    mean = summary.effective_bitwidth
    table.add_row(
        *_plain(
            "total",
            "",
            "",
            "",
            f"{sum(weight.weights for weight in summary.weights):,}",
            f"{summary.total_bytes:,}",
            "" if mean is None else f"{mean:.3f}",
            "" if summary.blend == 1 else f"not quantized yet: {summary.blend:.0%}",
        )
    )
    return table


def comparison_table(comparison: Comparison, title: str) -> Table:
    """Table of the differences of two models."""
    table = _table(title, ["layer", "weights", "outputs"], numeric=(1, 2))
    for layer in comparison.layers:
        outputs = "not reached" if layer.outputs is None else f"{layer.outputs:.3g}"
        table.add_row(*_plain(layer.name or "(the model)", f"{layer.weights:.3g}", outputs))
    return table


def printable(text: str) -> str:
    """Text without what a terminal would obey: a name in a file can be anything."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )


def _cells(weight: WeightSummary) -> list[Text]:
    widths = dict.fromkeys(weight.activation_bits.values())
    known = weight.effective_bitwidth is not None
    return _plain(
        weight.name,
        str(weight.bits),
        "+".join(map(str, widths)) or "float",
        "not known" if weight.shape is None else "x".join(map(str, weight.shape)) or "scalar",
        f"{weight.weights:,}",
        f"{weight.bytes:,}",
        f"{weight.effective_bitwidth:.3f}" if known else "",
        weight.method,
    )


def _plain(*cells: str) -> list[Text]:
    return [Text(printable(cell)) for cell in cells]


def _table(title: str, columns: Sequence[str], numeric: Sequence[int]) -> Table:
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numeric else "left", overflow="fold", no_wrap=index == 0)
    return table
