"""The quickstart's table, kept as a record.

Question: how do float, uniform and balanced networks compare on handwritten digits?  Not measured: larger networks.
Run: python -m benchmarks.bench_quickstart

Runs ``python -m recipes.quickstart`` and appends one record for each row of its table: mean and deviation of the
accuracy over seeds, effective bitwidth, bytes, and the quartiles of a training step's time relative to float's in the
same round.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.records import Record, append, results_path
from recipes.environment import environment


def main() -> None:
    """Run the quickstart and append its rows."""
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as root:
        output = Path(root) / "report"
        subprocess.run([sys.executable, "-m", "recipes.quickstart", "--output", str(output)], check=True)
        results = json.loads((output / "results.json").read_text())
    # The quickstart runs with one thread in each of its processes.
    described = environment(device) | {"threads": 1}
    for row in results["summary"]:
        append(results_path("bench_quickstart", device), row | described)


def quickstart_table(records: Sequence[Record]) -> str:
    """The rows of the last run: accuracy, effective bitwidth, bytes and overhead."""
    last = [index for index, record in enumerate(records) if record["case"] == "float"][-1]
    rows = records[last:]
    lines = ["| W/A | method | accuracy % | effective bitwidth | bytes | step time against float |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    first = rows[0]
    note = (
        "Handwritten digits (scikit-learn), a small CNN; mean ± standard deviation of the test accuracy over "
        f"n = {first['n']} seeds. The first and the last layer stay float32. Step time: median and quartiles of a "
        f"step of milliseconds. Device: {first['device']}; torch {first['torch']}, lightning {first['lightning']}. "
        "Repeat: `python -m benchmarks.bench_quickstart`."
    )
    lines += ["", note]
    return "\n".join(lines)


def _cells(row: Record) -> list[str]:
    bitwidth = "" if row["effective_bitwidth"] is None else f"{row['effective_bitwidth']:.2f}"
    time = "1"
    if row["step_time"] is not None:
        low, middle, high = row["step_time"]
        time = f"{middle:.2f} ({low:.2f}-{high:.2f})"
    accuracy = f"{row['accuracy']:.2f} ± {row['accuracy_deviation']:.2f}"
    return [row["width"], row["label"], accuracy, bitwidth, f"{row['quantized_bytes']:,}", time]


if __name__ == "__main__":
    main()
