"""Raw records of benchmarks: one JSON object a line, appended and never changed."""

import json
from pathlib import Path
from typing import Any, TypeAlias

import torch

from recipes.environment import environment

Record: TypeAlias = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> list[Record]:
    """Return the records of a file, none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, record: Record) -> None:
    """Add a record to a file."""
    with path.open("a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def results_path(benchmark: str, device: torch.device) -> Path:
    """Where the records of a benchmark are kept: ``<benchmark>--<device>--torch<version>.jsonl``."""
    return RESULTS / file_name(benchmark, environment(device))


def file_name(benchmark: str, where: Record) -> str:
    """Name of the file of a benchmark's records that were measured where ``where`` says."""
    kind, version = str(where["device"]).lower().replace(" ", "-"), str(where["torch"]).partition("+")[0]
    return f"{benchmark}--{kind}--torch{version}.jsonl"
