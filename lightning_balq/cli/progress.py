"""Show how far a command has come."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Note = Callable[[str], None]
"""Says what is done next; the step before it is done."""


@contextmanager
def progress(steps: int, console: Console | None = None) -> Iterator[Note]:
    """Within the context, show a bar of steps where somebody looks, which is gone afterwards.

    Args:
        steps: how many there will be.
        console: where to show it; by default standard error, if that is a terminal.

    Yields:
        What is to be called with the name of each step as it begins.

    Example:
        >>> with progress(2) as begin:
        ...     begin("reading")
        ...     begin("writing")
    """
    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda step: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task, begun = bar.add_task("", total=steps), 0

        def begin(step: str) -> None:
            nonlocal begun
            bar.update(task, description=step, completed=begun, refresh=True)
            begun += 1

        yield begin
        bar.update(task, completed=begun, refresh=True)
