"""Write the tables and figures of all documents from the records in ``results/``; nothing else writes any.

A table or a figure stands between two comments, and whatever was there is replaced:

    <!-- table: study_defaults -->
    <!-- /table -->

    <!-- figure: scaling_time -->
    <!-- /figure -->

Run: python -m benchmarks.make_tables            (writes)
     python -m benchmarks.make_tables --check    (writes nothing; exit status 1 if anything is out of date)
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.bars import NOT_MEASURED, bars_table
from benchmarks.bench_imagenet import imagenet_table
from benchmarks.bench_input import input_table
from benchmarks.bench_quickstart import quickstart_table
from benchmarks.bench_recording import recording_table
from benchmarks.bench_soak import soak_table
from benchmarks.figures import FIGURES, digest, draw, drawn_digest
from benchmarks.gpu import ablations, cifar10, imagenette, penn_treebank
from benchmarks.gpu.tables import cost_table, study_table
from benchmarks.mutation_table import mutation_table
from benchmarks.penn_treebank_tables import penn_treebank_table
from benchmarks.records import RESULTS, Record, read
from benchmarks.shipped import shipped_table
from benchmarks.speed_tables import (
    activations_table,
    deploy_table,
    export_table,
    recurrent_table,
    steps_table,
    weights_table,
)
from benchmarks.study_defaults_tables import factors_table, networks_table, settings_table
from benchmarks.suite import BENCHMARKS
from recipes.compare.tables import markdown_tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/**/*.md", "benchmarks/README.md")
DRAWINGS = Path(__file__).parent / "figures"

STUDY = "study_defaults--cpu--torch2.13.0.jsonl"
SCALING = "bench_scaling--cpu--torch*.jsonl"
COMPARE_CIFAR10 = "compare_cifar10_resnet20--*--torch*.jsonl"
COMPARE_DIGITS = "compare_digits_cnn--*--torch*.jsonl"
PENN_TREEBANK = "penn_treebank--*--torch*.jsonl"
SPEED = " ".join(f"{name}--cpu--torch*.jsonl" for name in BENCHMARKS)
TABLES: Mapping[str, tuple[str, Callable[[Sequence[Record]], str]]] = {
    "activations": ("bench_activations--cpu--torch*.jsonl", activations_table),
    "bars": (SPEED, bars_table),
    "compare_cifar10_resnet20": (COMPARE_CIFAR10, markdown_tables),
    "compare_digits_cnn": (COMPARE_DIGITS, markdown_tables),
    "deploy": ("bench_deploy--cpu--torch*.jsonl", deploy_table),
    "export": ("bench_export--cpu--torch*.jsonl", export_table),
    "gpu_cost": ("gpu_cost--*--torch*.jsonl", cost_table),
    **{
        f"gpu_{module.STUDY.name}": ("gpu_tables--*--torch*.jsonl", partial(study_table, module.STUDY))
        for module in (penn_treebank, cifar10, imagenette, ablations)
    },
    "imagenet": ("bench_imagenet--cpu--torch*.jsonl", imagenet_table),
    "input": ("bench_input--cpu--torch*.jsonl", input_table),
    "mutation": ("mutation--cpu--torch2.13.0.jsonl", mutation_table),
    "penn_treebank": (PENN_TREEBANK, penn_treebank_table),
    "quickstart": ("bench_quickstart--cpu--torch2.13.0.jsonl", quickstart_table),
    "recording": ("bench_recording--cpu--torch2.13.0.jsonl", recording_table),
    "recurrent": ("bench_recurrent--cpu--torch*.jsonl", recurrent_table),
    "shipped": ("shipped--cpu--torch*.jsonl", shipped_table),
    "soak": ("soak--cpu--torch*.jsonl", soak_table),
    "steps": ("bench_steps--cpu--torch*.jsonl", steps_table),
    "study_defaults": (STUDY, settings_table),
    "study_defaults_factors": (STUDY, factors_table),
    "study_defaults_networks": (STUDY, networks_table),
    "weights": ("bench_weights--cpu--torch*.jsonl", weights_table),
}
"""Name of a table to the files of its records, as globs, and the function that makes it from them."""

MAY_BE_EMPTY = {
    "activations", "bars", "deploy", "export", "gpu_ablations", "gpu_cifar10", "gpu_cost", "gpu_imagenette",
    "gpu_penn_treebank", "imagenet", "input", "penn_treebank",
    "recurrent", "shipped", "soak", "steps", "weights",
}  # fmt: skip
"""Tables that say so themselves if there are no records yet."""

_OPEN = r"<!-- (?P<kind>table|figure): (?P<name>\S+) -->\n"
_CLOSE = r"<!-- /(?:table|figure) -->"


def table(name: str, results: Path = RESULTS) -> str:
    """Make one table.

    Raises:
        ValueError: if there is no table of that name, or nothing to make it from.
    """
    if name not in TABLES:
        raise ValueError(f"the name in a `<!-- table: NAME -->` must be one of {sorted(TABLES)}, got {name!r}")
    files, make = TABLES[name]
    records = _records(files, results)
    if not records and name not in MAY_BE_EMPTY:
        raise ValueError(f"table {name!r} needs the records {files!r}, which are not there: run the benchmark first")
    return make(records)


def figure(name: str, document: Path, results: Path = RESULTS) -> str:
    """Link a figure, or say that there is nothing to draw yet.

    Raises:
        ValueError: if there is no figure of that name.
    """
    if name not in FIGURES:
        raise ValueError(f"the name in a `<!-- figure: NAME -->` must be one of {sorted(FIGURES)}, got {name!r}")
    if not _records(SCALING, results):
        return NOT_MEASURED
    path = Path(os.path.relpath(DRAWINGS / f"{name}.svg", document.resolve().parent))
    return f"![{name.replace('_', ' ')}]({path.as_posix()})"


def fill(text: str, results: Path = RESULTS, document: Path = ROOT / "README.md") -> str:
    """Return the text of a document with all its tables made anew and its figures linked.

    Raises:
        ValueError: if a table or figure is not closed, or unknown.
    """
    opened, closed = len(re.findall(_OPEN, text)), len(re.findall(_CLOSE, text))
    if opened != closed:
        raise ValueError(f"every `<!-- table: NAME -->` line needs a `<!-- /table -->`, got {opened} and {closed}")

    def filled(found: re.Match[str]) -> str:
        name = found["name"]
        made = table(name, results) if found["kind"] == "table" else figure(name, document, results)
        return f"{found['open']}\n{made}\n\n{found['close']}"

    return re.sub(f"(?P<open>{_OPEN}).*?(?P<close>{_CLOSE})", filled, text, flags=re.DOTALL)


def update(documents: Iterable[Path], results: Path = RESULTS, *, check: bool = False) -> list[Path]:
    """Fill the tables of documents, or only check them; return those that were out of date."""
    stale = []
    for path in documents:
        text = path.read_text()
        filled = fill(text, results, path)
        if filled != text:
            stale.append(path)
            if not check:
                path.write_text(filled)
    return stale


def update_figures(folder: Path = DRAWINGS, results: Path = RESULTS, *, check: bool = False) -> list[Path]:
    """Draw the figures whose data changed, or only check them; return those that were out of date."""
    stale = []
    records = _records(SCALING, results)
    for name, make in FIGURES.items() if records else ():
        panels, path = make(records), folder / f"{name}.svg"
        if drawn_digest(path) != digest(panels):
            stale.append(path)
            if not check:
                draw(panels, path)
    return stale


def documents() -> list[Path]:
    """Every document that may hold tables."""
    return sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check tables and figures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="*", help=f"default: {', '.join(DOCUMENTS)}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if anything is out of date")
    options = parser.parse_args(arguments)
    stale = update(options.documents or documents(), check=options.check)
    stale += update_figures(check=options.check)
    for path in stale:
        print(f"{'out of date' if options.check else 'written'}: {path}")
    return int(options.check and bool(stale))


def _records(files: str, results: Path) -> list[Record]:
    paths = sorted(path for pattern in files.split() for path in results.glob(pattern))
    return [record for path in paths for record in read(path)]


if __name__ == "__main__":
    raise SystemExit(main())
