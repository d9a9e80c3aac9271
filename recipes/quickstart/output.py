"""The output folder: nothing that is there already is lost by accident."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from recipes.quickstart.page import report_page
from recipes.quickstart.results import Results
from recipes.quickstart.summary import comparisons, table_rows

REPORT, RESULTS = "report.html", "results.json"


@contextmanager
def claimed_folder(folder: Path, overwrite: bool) -> Iterator[None]:
    """Make the folder before work begins, so that it fails early; remove it if nothing was written after all.

    Raises:
        FileExistsError: if it exists and ``overwrite`` is false.
        OSError: if it cannot be made.
    """
    existed = folder.is_dir()
    if existed and not overwrite:
        raise FileExistsError(
            f"the output folder {str(folder)!r} exists already; choose another with --output, or replace its "
            f"{REPORT} and {RESULTS} with --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=overwrite)
    try:
        yield
    finally:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def private_font_cache() -> Iterator[None]:
    """Keep matplotlib, which torchmetrics imports too, from writing to the home directory, here and in workers."""
    key = "MPLCONFIGDIR"
    if key in os.environ:
        yield
        return
    with TemporaryDirectory() as folder:
        os.environ[key] = folder
        try:
            yield
        finally:
            del os.environ[key]


def write_output(folder: Path, results: Results) -> None:
    """Write the report and every raw number."""
    summary = {
        "summary": [asdict(row) for row in table_rows(results)],
        "comparisons": [asdict(item) for family in comparisons(results) for item in family],
    }
    text = json.dumps(summary | asdict(results), indent=1, allow_nan=False)
    text = re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)  # one list of numbers, one line
    page = report_page(results)  # both are complete before either is written
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    (folder / REPORT).write_text(page, encoding="utf-8")
