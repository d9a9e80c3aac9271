"""Tables of what others report, with our own rows below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.study import Study
from benchmarks.records import Record
from benchmarks.study_defaults_tables import markdown
from recipes.compare.cells import FLOAT, Width
from recipes.compare.summary import Row, mean, rows_of

FILE = Path(__file__).parent / "published.yaml"
NOT_MEASURED = "not measured"


def published() -> dict[str, Any]:
    """What the file says, by the name of a table."""
    read: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def published_table(study: Study, records: Sequence[Record]) -> str:
    """Published rows, and ours below them; nothing where nobody reports anything.

    Args:
        study: whose table it is.
        records: of the study, all from one device.
    """
    known = published().get(study.name)
    if known is None:
        return ""
    columns = [(recipe, width) for recipe in study.recipes for width in (*study.columns, Width(None, None))]
    rows = [[row["name"], *(_published(row, *column) for column in columns)] for row in known["rows"]]
    measured = {recipe: _by_method(records, recipe) for recipe in study.recipes}
    rows += [
        [f"ours, {method}", *(_ours(measured[recipe], method, width) for recipe, width in columns)]
        for method in study.methods
        if method != FLOAT
    ]
    several = len(study.recipes) > 1
    header = ["", *(f"{recipe.split('_')[1].upper()} {width}" if several else str(width) for recipe, width in columns)]
    sources = "; ".join(f"{row['name']}: {row['source']}" for row in known["rows"])
    note = f"{known['unit']}. Ours: mean over the seeds measured, whose number stands in brackets."
    unsure = "A question mark: not checked against the paper itself."
    return f"{markdown(header, rows)}\n\n{note} {unsure} {known['differences'].strip()} Sources: {sources}."


def _published(row: Mapping[str, Any], recipe: str, width: Width) -> str:
    return str(row.get(recipe, {}).get(str(width), ""))


def _by_method(records: Sequence[Record], recipe: str) -> dict[tuple[str, Width], Row]:
    return {(row.method, row.width): row for row in rows_of(one for one in records if one["recipe"] == recipe)}


def _ours(rows: Mapping[tuple[str, Width], Row], method: str, width: Width) -> str:
    row = rows.get((method if width.weight_bits else FLOAT, width))
    if row is None:
        return NOT_MEASURED
    values = list(row.results().values())
    average = mean(values)
    return "diverged" if average is None else f"{average:.1f} ({len(values)})"
