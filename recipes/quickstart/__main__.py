"""Command line of the quickstart."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recipes.quickstart.output import REPORT, claimed_folder, private_font_cache, write_output
from recipes.quickstart.study import Study, run_study
from recipes.quickstart.table import result_tables

DESCRIPTION = """Train a small network on handwritten digits in float, with uniform and with balanced quantization,
from several seeds; print a table, and write report.html and results.json. Takes about a minute on two cores."""
INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, print its table and write its report.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The exit status.
    """
    options = parse(arguments)
    study = Study(list(range(options.seed, options.seed + options.seeds)), options.epochs, options.workers)
    try:
        with claimed_folder(options.output, options.overwrite), private_font_cache():
            run(study, options.output)
    except KeyboardInterrupt:
        return fail("stopped; no report was written", INTERRUPTED)
    except BrokenProcessPool:
        return fail("a worker process died, perhaps for want of memory; try --workers 1", 1)
    except OSError as error:
        return fail(str(error), 2)
    return 0


def run(study: Study, folder: Path) -> None:
    """Run the study behind a progress bar, then show and write what came out."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("", total=len(study.tasks))

        def announce(activity: str, trained: int) -> None:
            progress.update(bar, description=activity, completed=trained)

        results = run_study(study, announce)
        announce("writing the report", len(study.tasks))
        write_output(folder, results)
    console = Console()
    console.print(result_tables(results))
    console.print(f"Report: {folder / REPORT}", soft_wrap=True, highlight=False, markup=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description=DESCRIPTION)
    parser.add_argument("--output", type=Path, default=Path("quickstart_report"), metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the report in a folder that exists")
    parser.add_argument("--seed", type=whole(0), default=0, help="first seed")
    parser.add_argument("--seeds", type=whole(1), default=5, metavar="N", help="runs of each row, with as many seeds")
    parser.add_argument("--epochs", type=whole(1), default=8, help="epochs of each run")
    parser.add_argument("--workers", type=whole(1), default=min(2, os.cpu_count() or 1), help="processes at once")
    return parser.parse_args(arguments)


def whole(smallest: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number from ``smallest`` up."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if not smallest <= value < 2**31:
            raise argparse.ArgumentTypeError(f"expected a whole number of {smallest} or more, got {text!r}")
        return value

    return number


def fail(message: str, status: int) -> int:
    """Say why there is no report."""
    Console(stderr=True).print(message, style="red", soft_wrap=True, highlight=False, markup=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
