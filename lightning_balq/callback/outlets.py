"""Where records and tables go; one that cannot be written, as on a full disk, does not stop training."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from rich.console import Console


class Outlets:
    """Writes to loggers and the terminal, and says once of each where the system refused that."""

    def __init__(self) -> None:
        self._refused: set[str] = set()

    def record(self, loggers: Sequence[Logger], metrics: Mapping[str, float], step: int) -> None:
        """Give the metrics to every logger."""
        for index, logger in enumerate(loggers):
            where = f"{type(logger).__name__} (logger {index})"
            self._try(where, functools.partial(logger.log_metrics, dict(metrics), step=step))

    def show(self, table: Any) -> None:
        """Print a table."""
        self._try("the terminal", functools.partial(Console().print, table))

    def _try(self, where: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if where not in self._refused:
                self._refused.add(where)
                warnings.warn(
                    f"Quantization could not be recorded, as {where} could not write ({error}). Training goes on; free "
                    "space, or choose another place, to have the next records written",
                    stacklevel=2,
                )
