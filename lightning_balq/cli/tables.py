"""Tables of the command line, for people."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_balq.cli.comparison import Comparison
from lightning_balq.cli.summary import Summary, WeightSummary
from lightning_balq.export import DeployReport
from lightning_balq.export.onnx import OnnxReport

SUMMARY_COLUMNS = ["weight", "W bits", "A bits", "shape", "weights", "bytes", "effective bits", "method"]


def summary_table(summary: Summary, title: str) -> Table:
    """Table of what a file holds."""
    table = _table(title, SUMMARY_COLUMNS, numeric=(4, 5, 6))
    for weight in summary.weights:
        table.add_row(*_plain(*summary_cells(weight)))
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
    """Table of the differences of two models; weights only where they are compared."""
    has_weights = any(layer.weights is not None for layer in comparison.layers)
    columns = ["layer", *(["weights, largest"] if has_weights else []), "outputs, largest", "median", "of at most"]
    table = _table(title, columns, numeric=range(1, len(columns)))
    for layer in comparison.layers:
        numbers = [*([layer.weights] if has_weights else []), layer.outputs, layer.median, layer.magnitude]
        table.add_row(*_plain(layer.name or "(the model)", *("" if n is None else f"{n:.3g}" for n in numbers)))
    return table


def onnx_table(report: OnnxReport, title: str) -> Table:
    """Table of what became of the weights in an ONNX file."""
    table = _table(title, ["weight", "W bits", "A bits", "multiplied as", "because"], numeric=())
    for weight in report.weights:
        bits = "float" if weight.activation_bits is None else str(weight.activation_bits)
        table.add_row(*_plain(weight.name, str(weight.bits), bits, weight.form, weight.reason))
    table.add_section()
    table.add_row(*_plain("codes", f"{report.code_bytes:,} bytes", "", f"{report.float_bytes:,} bytes as float32", ""))
    return table


def deploy_table(report: DeployReport, title: str) -> Table:
    """Table of what became of the layers in a deploy model."""
    table = _table(title, ["layer", "W bits", "A bits", "computes in", "folded", "stays float because"], numeric=())
    for layer in report.layers:
        bits = ("float" if width is None else str(width) for width in (layer.weight_bits, layer.activation_bits))
        kind = "int8" if layer.int8 else "float"
        table.add_row(*_plain(layer.name or "(the model)", *bits, kind, layer.norm, layer.reason))
    if report.note:
        table.caption = Text(printable(report.note))
    return table


def printable(text: str) -> str:
    """Text without what a terminal would obey: a name in a file can be anything."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )


def summary_cells(weight: WeightSummary) -> list[str]:
    """A weight in the columns of :data:`SUMMARY_COLUMNS`."""
    widths = dict.fromkeys(weight.activation_bits.values())
    known = weight.effective_bitwidth is not None
    return [
        weight.name,
        str(weight.bits),
        "+".join(map(str, widths)) or "float",
        "not known" if weight.shape is None else "x".join(map(str, weight.shape)) or "scalar",
        f"{weight.weights:,}",
        f"{weight.bytes:,}",
        f"{weight.effective_bitwidth:.3f}" if known else "",
        weight.method,
    ]


def _plain(*cells: str) -> list[Text]:
    return [Text(printable(cell)) for cell in cells]


def _table(title: str, columns: Sequence[str], numeric: Sequence[int]) -> Table:
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numeric else "left", overflow="fold", no_wrap=index == 0)
    return table
