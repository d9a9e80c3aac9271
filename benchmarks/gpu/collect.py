"""Put the records of a GPU beside those of the other benchmarks, from which `make_tables` writes the tables.

Run: python -m benchmarks.gpu.collect --results FOLDER && python -m benchmarks.make_tables

It takes the records of runs and of costs, and the pictures of where the time goes. Records of a CPU are left where they
are; without any of a GPU, nothing is written, and the exit status is 1.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.cost import FILE
from benchmarks.records import RESULTS, Record, file_name, read
from recipes.compare.records import Results

FIGURES = Path(__file__).parents[1] / "figures"
NOTHING = "there are no records of a GPU: nothing is written"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files of records; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.collect", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER", help="of `python -m benchmarks.gpu`")
    asked = parser.parse_args(arguments)
    written = collect(asked.results)
    for path in written:
        print(f"written: {path}")
    if not written:
        print(NOTHING)
    return int(not written)


def collect(folder: Path, results: Path = RESULTS, figures: Path = FIGURES) -> list[Path]:
    """Write one file for each kind of record, GPU and version of torch, in place of earlier ones; return them."""
    files: dict[Path, list[Record]] = {}
    kinds = {"gpu_tables": Results(folder).read(), "gpu_cost": read(folder / FILE)}
    for kind, records in kinds.items():
        for record in records:
            if record["device"] != "cpu":
                files.setdefault(results / file_name(kind, record), []).append(record)
    for path, records in files.items():
        path.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in records), encoding="utf-8")
    if any(path.name.startswith("gpu_cost") for path in files):
        for picture in sorted(folder.glob("profile-*/profile.svg")):
            path = figures / f"gpu_{picture.parent.name}.svg"
            shutil.copyfile(picture, path)
            files[path] = []
    return sorted(files)


if __name__ == "__main__":
    raise SystemExit(main())
