"""What a callback recorded during training, from the file of Lightning's CSVLogger."""

import csv
from dataclasses import dataclass
from pathlib import Path

PREFIX = "balq/"
STATISTICS = ("overhead", "effective_bitwidth", "bin_utilization", "imbalance", "code_flip_rate")


@dataclass(frozen=True)
class Series:
    """One statistic of one layer, or of all together.

    Attributes:
        statistic: one of :data:`STATISTICS`.
        layer: name of the layer, or of a part of it; ``None`` for all together.
        values: by step, in its order; may be infinite or NaN.
    """

    statistic: str
    layer: str | None
    values: dict[int, float]


def read_records(path: Path) -> list[Series]:
    """Read ``metrics.csv``; columns that are not of this package are left out.

    Raises:
        ValueError: if it holds no records of this package, or something else than numbers among them.
        OSError: if it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} is not a CSV file: {error}") from error
    found: dict[str, Series] = {}
    for line, row in enumerate(rows, start=2):
        for column, text in row.items():
            series = _empty(column)
            if series is not None and text:
                step = _number(path, line, "step", row.get("step"))
                found.setdefault(column, series).values[int(step)] = _number(path, line, column, text)
    if not found:
        raise ValueError(f"{str(path)!r} holds no column {PREFIX}..; expected metrics.csv as CSVLogger writes it")
    return [Series(each.statistic, each.layer, dict(sorted(each.values.items()))) for each in found.values()]


def _empty(column: str | None) -> Series | None:
    if column is None or not column.startswith(PREFIX):
        return None
    layer, slash, statistic = column.removeprefix(PREFIX).rpartition("/")
    return Series(statistic, layer if slash else None, {}) if statistic in STATISTICS else None


def _number(path: Path, line: int, column: str, text: object) -> float:
    try:
        value = float(str(text))
        return float(int(value)) if column == "step" else value
    except (OverflowError, ValueError):
        raise ValueError(f"{str(path)!r}, line {line}: `{column}` must be a number, got {text!r}") from None
