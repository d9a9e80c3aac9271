"""The result table and what can be said about it, in the terminal."""

from itertools import groupby

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from recipes.quickstart.results import Results
from recipes.quickstart.summary import Comparison, Row, comparisons, table_rows
from recipes.statistics import SIGNIFICANCE


def result_tables(results: Results) -> Group:
    """The table of rows, what stays float, and what can be told apart."""
    return Group(
        _rows_table(table_rows(results)),
        Text(f"Float in every row: {results.setup.float_layers}."),
        Text(),
        *map(Text, verdicts(comparisons(results))),
    )


def _rows_table(rows: list[Row]) -> Table:
    title = f"Handwritten digits, test accuracy over {count_seeds(rows[0].n)}"
    # Two spaces between columns, so that all fit into 80.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: row.width):
        for row in group:
            table.add_row(*row_cells(row))
        table.add_section()
    return table


HEADINGS = ("W/A", "method", "accuracy\n%", "effective\nbitwidth", "bytes", "overhead %\n(quartiles)")


def row_cells(row: Row) -> tuple[str, ...]:
    """The cells of a row under :data:`HEADINGS`; the report shows the same."""
    spread = "" if row.accuracy_deviation is None else f" ± {row.accuracy_deviation:.2f}"
    bitwidth = "" if row.effective_bitwidth is None else f"{row.effective_bitwidth:.2f}"
    low, middle, high = (f"{100 * (ratio - 1):.0f}" for ratio in row.step_time or (1, 1, 1))
    overhead = "" if row.step_time is None else f"{middle} [{low}, {high}]"
    return row.width, row.label, f"{row.accuracy:.2f}{spread}", bitwidth, f"{row.quantized_bytes:,}", overhead


def count_seeds(count: int) -> str:
    """A number of seeds in words."""
    return "1 seed" if count == 1 else f"{count} seeds"


def verdicts(families: list[list[Comparison]]) -> list[str]:
    """What can be told apart, as sentences."""
    every = [item for family in families for item in family]
    if every[0].n == 1:
        return ["One seed: no difference can be tested."]
    found = [item.sentence for item in every if item.distinguishable]
    rest = f"{len(every) - len(found)} of {len(every)} differences are not distinguishable from chance"
    return [*found, f"{'The other ' if found else ''}{rest} (paired t-test, Holm-adjusted p < {SIGNIFICANCE})."]
