"""Tables of what is quantized and of what was recorded, for people."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lightning_balq.nn.plan import LayerPlan, Plan


def plan_table(plan: Plan) -> Table:
    """Table of a plan: layer, bits, shape, weights, bytes before and after, and why a layer stays float."""
    count = len(plan.quantized)
    columns = ["layer", "W/A bits", "shape", "weights", "bytes", "after", "stays float because"]
    table = make_table(f"{count} of {len(plan.layers)} layers quantized", columns, numeric=(3, 4, 5))
    for layer in plan.layers:
        table.add_row(*_cells(layer), style=None if layer.quantized else "dim")
    table.add_section()
    if plan.other_bytes:
        other = f"{plan.other_bytes:,}"
        table.add_row("other parameters", "float", "", "", other, other, "biases, norms and others", style="dim")
    weights = sum(layer.weights for layer in plan.layers)
    table.add_row("total", "", "", f"{weights:,}", f"{plan.float_bytes:,}", f"{plan.quantized_bytes:,}", "")
    return table


def plan_text(plan: Plan) -> str:
    """The table of a plan as plain text."""
    return as_text(plan_table(plan))


def as_text(table: Table) -> str:
    """A table as plain text."""
    buffer = io.StringIO()
    Console(file=buffer, width=10_000, no_color=True, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def record_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Table with one row for each layer; the first column is its name, the others are numbers."""
    table = make_table(title, columns, numeric=range(1, len(columns)))
    for row in rows:
        table.add_row(*row)
    return table


def make_table(title: str, columns: Sequence[str], numeric: Iterable[int] = ()) -> Table:
    """Empty table; columns whose index is in ``numeric`` hold numbers."""
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    right = set(numeric)  # numbers are never broken over lines; names are, where a terminal is too narrow for them
    for index, column in enumerate(columns):
        table.add_column(
            column, justify="right" if index in right else "left", overflow="fold", no_wrap=index in right or index == 0
        )
    return table


def _widths(layer: LayerPlan) -> str:
    """Bits of weights and activations, as ``2/3``; ``2+4/3+2`` if those of kernel and input and of the state differ."""
    if not layer.quantized:
        return "float"
    weights, activations = [layer.weight_bits], [layer.activation_bits]
    if layer.is_recurrent:
        weights.append(layer.recurrent_bits)
        activations.append(layer.state_bits)
    return "/".join(map(_joined, (weights, activations)))


def _joined(widths: Sequence[int | None]) -> str:
    return "+".join("float" if bits is None else str(bits) for bits in dict.fromkeys(widths))


def _cells(layer: LayerPlan) -> list[str]:
    shape = ", ".join("x".join(map(str, shape)) or "scalar" for shape in layer.shapes)
    return [
        layer.name or "(the model)",
        _widths(layer),
        shape or "not known yet",
        f"{layer.weights:,}",
        f"{layer.float_bytes:,}",
        f"{layer.quantized_bytes:,}",
        layer.reason,
    ]
