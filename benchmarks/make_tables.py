"""Write the tables of all documents from the records in ``results/``; nothing else writes a table.

A table stands between two comments, and whatever was there is replaced:

    <!-- table: study_defaults -->
    <!-- /table -->

Run: python -m benchmarks.make_tables            (writes)
     python -m benchmarks.make_tables --check    (writes nothing; exit status 1 if a document is out of date)
"""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.bench_quickstart import quickstart_table
from benchmarks.bench_recording import recording_table
from benchmarks.records import RESULTS, Record, read
from benchmarks.study_defaults_tables import factors_table, networks_table, settings_table

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/**/*.md", "benchmarks/README.md")

STUDY = "study_defaults--cpu--torch2.13.0.jsonl"
TABLES: Mapping[str, tuple[str, Callable[[Sequence[Record]], str]]] = {
    "quickstart": ("bench_quickstart--cpu--torch2.13.0.jsonl", quickstart_table),
    "recording": ("bench_recording--cpu--torch2.13.0.jsonl", recording_table),
    "study_defaults": (STUDY, settings_table),
    "study_defaults_factors": (STUDY, factors_table),
    "study_defaults_networks": (STUDY, networks_table),
}
"""Name of a table to the file of its records and the function that makes it from them."""

_OPEN = r"<!-- table: (?P<name>\S+) -->\n"
_CLOSE = "<!-- /table -->"


def table(name: str, results: Path = RESULTS) -> str:
    """Make one table.

    Raises:
        ValueError: if there is no table of that name, or nothing to make it from.
    """
    if name not in TABLES:
        raise ValueError(f"the name in a `<!-- table: NAME -->` must be one of {sorted(TABLES)}, got {name!r}")
    file, make = TABLES[name]
    if not (records := read(results / file)):
        raise ValueError(f"table {name!r} needs the records {file!r}, which are not there: run the benchmark first")
    return make(records)


def fill(text: str, results: Path = RESULTS) -> str:
    """Return the text of a document with all its tables made anew.

    Raises:
        ValueError: if a table is not closed, or unknown.
    """
    opened, closed = len(re.findall(_OPEN, text)), text.count(_CLOSE)
    if opened != closed:
        raise ValueError(f"every `<!-- table: NAME -->` line needs a `{_CLOSE}`, got {opened} and {closed}")
    return re.sub(
        f"({_OPEN}).*?({_CLOSE})",
        lambda found: f"{found[1]}\n{table(found['name'], results)}\n\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def update(documents: Iterable[Path], results: Path = RESULTS, *, check: bool = False) -> list[Path]:
    """Fill the tables of documents, or only check them; return those that were out of date."""
    stale = []
    for path in documents:
        text = path.read_text()
        filled = fill(text, results)
        if filled != text:
            stale.append(path)
            if not check:
                path.write_text(filled)
    return stale


def documents() -> list[Path]:
    """Every document that may hold tables."""
    return sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="*", help=f"default: {', '.join(DOCUMENTS)}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a table is out of date")
    options = parser.parse_args(arguments)
    stale = update(options.documents or documents(), check=options.check)
    for path in stale:
        print(f"{'out of date' if options.check else 'written'}: {path}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
