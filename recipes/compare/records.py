"""What came out of each cell: one file for each, written whole or not at all, so that no lock and no repair is needed.

A folder of results has ``records/<cell>.json``, one JSON object of one line, and ``runs/<cell>/``, with the log of the
run and, while it is not finished, the checkpoint that it goes on from; that of a float network is kept, for those that
begin with it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
FINISHED, FAILED = "finished", "failed"
LOG = "log.txt"
METRICS = {"test_accuracy": ("val_accuracy", max), "test_perplexity": ("val_perplexity", min)}
"""What a table compares, with its counterpart in validation and which of two values is the better."""


@dataclass(frozen=True)
class Results:
    """A folder of results.

    Args:
        folder: need not exist yet.
    """

    folder: Path

    def record(self, cell: str) -> Record | None:
        """The record of a cell, if there is one."""
        path = self._path(cell)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def is_due(self, cell: str, retry: bool) -> bool:
        """Whether a cell is still to be run; with ``retry`` one that failed is."""
        record = self.record(cell)
        return record is None or (retry and record["status"] == FAILED)

    def write(self, cell: str, record: Record) -> None:
        """Write the record of a cell, in place of an earlier one."""
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)

    def run(self, cell: str) -> Path:
        """Folder in which a cell works."""
        path = self.folder / "runs" / cell
        path.mkdir(parents=True, exist_ok=True)
        return path

    def read(self) -> list[Record]:
        """Every record, in the order of their names."""
        paths = sorted((self.folder / "records").glob("*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def _path(self, cell: str) -> Path:
        return self.folder / "records" / f"{cell}.json"


def read(path: Path) -> list[Record]:
    """Return the records of a folder of results, or of a file of JSON lines.

    Raises:
        FileNotFoundError: if there are none.
    """
    if path.is_file():
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        records = Results(path).read()
    if not records:
        raise FileNotFoundError(
            f"`--results` must be a folder with records of runs, or a file of them, {path} has none: run "
            f"`python -m recipes.compare all RECIPE --results {path}` first"
        )
    return records
