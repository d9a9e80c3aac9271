"""Run what is missing of a comparison, and say how it goes."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipes.compare.cells import Cell
from recipes.compare.records import FAILED, Record
from recipes.compare.scheduler import Scheduler
from recipes.compare.summary import scale

SOME_FAILED, SOME_LEFT = 1, 75
"""Exit statuses; the second is what programs return that are to be called again."""


def run_missing(cells: Sequence[Cell], scheduler: Scheduler, console: Console) -> int:
    """Run the cells that are not recorded yet.

    Args:
        cells: of the comparison, in the order in which to run them.
        scheduler: runs them.
        console: where to say what came out, what is left and what failed.

    Returns:
        The exit status: 0 if every cell is recorded and none failed, 1 if one failed, else 75.
    """
    results = scheduler.results
    due = [cell for cell in cells if results.is_due(cell.name, scheduler.options.retry)]
    console.print(f"{len(cells)} runs, {len(cells) - len(due)} of them recorded", highlight=False)
    left = _run(due, scheduler, console)
    failed = [cell for cell in cells if (results.record(cell.name) or {}).get("status") == FAILED]
    if failed:
        console.print(f"{len(failed)} runs have failed; `--retry` runs them again", style="red", highlight=False)
    if left:
        text = f"{len(left)} of {len(cells)} runs are left; the same command goes on"
        console.print(text, style="yellow", highlight=False)
    return SOME_FAILED if failed else SOME_LEFT if left else 0


def said(record: Record | None) -> str:
    """What is shown of a run that ended."""
    if record is None:
        return "another program is at work on it"
    if record["status"] == FAILED:
        return f"failed: {record['error']} ({record['log']})"
    if record["diverged"]:
        return "diverged"
    metric = record["metric"]
    value = "" if metric is None else f"{metric} {scale(metric) * record['test'][metric]:.2f}, "
    return f"{value}{record['epochs']} epochs in {record['seconds']:.1f} s"


def _run(due: Sequence[Cell], scheduler: Scheduler, console: Console) -> list[Cell]:
    """Run cells behind a progress bar; return those that are left."""
    columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(due))

        several = len({cell.recipe for cell in due}) > 1

        def announce(cell: Cell, record: Record | None) -> None:
            text = f"{cell.recipe.stem}, " * several + f"{cell.label}: {said(record)}"
            progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
            progress.advance(bar)

        return scheduler.run(due, announce)
