"""Records of a study made up for tests, and how to read a table."""

from benchmarks.records import Record
from benchmarks.study_defaults import FLOAT, Run, Setting

WHERE = {
    "epochs": 1, "device": "cpu", "threads": 1, "torch": "2", "lightning": "3", "lightning_balq": "4",
    "commit": "0123456789", "dirty": False, "sources": "abc",
}  # fmt: skip
BALANCED = Setting("balanced", "max", "mean", "unit", "per_tensor")
MEDIAN = Setting("balanced", "max", "median", "unit", "per_tensor")
MLP = Run(BALANCED, 1, "mlp", 0)


def record(setting: Setting, bits: int | None, seed: int, accuracy: float, **changes: object) -> Record:
    run = Run(setting, bits, "mlp", seed)
    return {**run.identity(), "test_accuracy": accuracy, "non_finite": False, "collapsed": False, **WHERE, **changes}


def example() -> list[Record]:
    """Two seeds, two widths: the mean beats the median by 0.1 and 0.3 for seed 0, and by 0.2 and 0.2 for seed 1."""
    return [
        record(FLOAT, None, 0, 0.95), record(FLOAT, None, 1, 0.97),
        record(BALANCED, 1, 0, 0.8), record(BALANCED, 2, 0, 0.9),
        record(BALANCED, 1, 1, 0.6), record(BALANCED, 2, 1, 0.9),
        record(MEDIAN, 1, 0, 0.7), record(MEDIAN, 2, 0, 0.6), record(MEDIAN, 1, 1, 0.4, collapsed=True),
        record(MEDIAN, 2, 1, 0.7, non_finite=True),
    ]  # fmt: skip


def cells(table: str) -> dict[str, list[str]]:
    """Rows of a markdown table by their first cell."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}
