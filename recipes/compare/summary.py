"""Rows of a table, and what can be said about their differences, from records."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from recipes.compare.cells import FLOAT, Width
from recipes.compare.records import FAILED, METRICS, Record
from recipes.statistics import SIGNIFICANCE, PairedTest, holm, paired_test


@dataclass(frozen=True)
class Row:
    """The runs of one method at one width.

    Attributes:
        width: bits.
        method: its name.
        runs: records of those that finished, by seed.
        failed: records of those that did not.
    """

    width: Width
    method: str
    runs: dict[int, Record]
    failed: list[Record]

    @property
    def label(self) -> str:
        """Its name in a sentence."""
        return self.method if self.method == FLOAT else f"{self.method} {self.width}"

    def results(self) -> dict[int, float]:
        """What is compared, by seed: the test metric of the last epoch's network, accuracies in percent."""
        values = {seed: run["test"].get(run["metric"]) for seed, run in self.runs.items()}
        scales = {seed: scale(run["metric"]) for seed, run in self.runs.items()}
        return {seed: scales[seed] * value for seed, value in values.items() if value is not None}

    def best(self) -> list[float]:
        """Best validation of each run, accuracies in percent."""
        found = [run["best"] for run in self.runs.values() if run["best"]]
        return [scale(best["metric"]) * best["value"] for best in found]

    def values(self, field: str) -> list[float]:
        """A field of all runs that have it."""
        return [run[field] for run in self.runs.values() if run[field] is not None]

    @property
    def diverged(self) -> int:
        """Number of runs that diverged."""
        return sum(run["diverged"] for run in self.runs.values())


@dataclass(frozen=True)
class Difference:
    """One row minus another, paired by seed.

    Attributes:
        test: the paired test.
        p: adjusted for the rows of the table that are compared with the same row; ``None`` where nothing was tested.
    """

    test: PairedTest
    p: float | None

    @property
    def distinguishable(self) -> bool:
        """Whether chance is an unlikely explanation."""
        return self.p is not None and self.p < SIGNIFICANCE


def scale(metric: str | None) -> int:
    """Factor by which a metric is shown: accuracies are in percent."""
    return 100 if metric is not None and metric.endswith("accuracy") else 1


def metric_of(records: Iterable[Record]) -> str | None:
    """What the runs of a table are compared by."""
    found = {record.get("metric") for record in records}
    return next((name for name in METRICS if name in found), None)


def settings_of(records: Iterable[Record]) -> dict[tuple[str, str, str, str], list[Record]]:
    """Records by what belongs into one table: recipe with overrides, device and version of torch."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        key = (record["recipe"], record["setting"], record["device"], record["torch"])
        groups.setdefault(key, []).append(record)
    return dict(sorted(groups.items()))


def rows_of(records: Iterable[Record]) -> list[Row]:
    """Rows of a table: float first, then by width, then by method."""
    rows: dict[tuple[str, Width], Row] = {}
    for record in records:
        width = Width(record["weight_bits"], record["activation_bits"])
        row = rows.setdefault((record["method"], width), Row(width, record["method"], {}, []))
        if record["status"] == FAILED:
            row.failed.append(record)
        else:
            row.runs[record["seed"]] = record
    return sorted(rows.values(), key=lambda row: (row.width.order, row.method))


def against_float(rows: Sequence[Row]) -> dict[str, Difference]:
    """Difference of each quantized row to the float one, by the label of the row."""
    other = next((row for row in rows if row.method == FLOAT), None)
    return _differences([(row, other) for row in rows if row is not other])


def against_baseline(rows: Sequence[Row], baseline: str) -> dict[str, Difference]:
    """Difference of each quantized row to the baseline at the same width, by the label of the row."""
    others = {row.width: row for row in rows if row.method == baseline}
    return _differences([(row, others.get(row.width)) for row in rows if row.method not in (baseline, FLOAT)])


def _differences(pairs: Iterable[tuple[Row, Row | None]]) -> dict[str, Difference]:
    tests = {}
    for row, other in pairs:
        ours, theirs = row.results(), {} if other is None else other.results()
        differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        if differences:
            tests[row.label] = paired_test(differences)
    adjusted = holm([test.p for test in tests.values()])
    return {label: Difference(test, p) for (label, test), p in zip(tests.items(), adjusted, strict=True)}


def mean(values: Sequence[float]) -> float | None:
    """Mean of one or more values."""
    return fmean(values) if values else None
