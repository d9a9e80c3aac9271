"""Run many cells, each in a process of its own, which never outlives this one."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue

from recipes.compare.cells import Cell, Options
from recipes.compare.records import LOG, Record, Results
from recipes.processes import exit_with_parent

# Importing torch and Lightning takes longer than some runs. A server does it once, and each run is a fork of it.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

Announce = Callable[[Cell, Record | None], None]


@dataclass
class Scheduler:
    """Runs cells, some at a time.

    Args:
        results: where their records are kept.
        options: how to run each.
        jobs: processes at work at once.
        gpus: what each of them sees as its GPU, in turn, as in ``CUDA_VISIBLE_DEVICES``; none: what this process sees.
        deadline: when to stop, as ``time.monotonic()`` counts; ``None`` for never. What is running then goes on from
            its last epoch when it is run again.
    """

    results: Results
    options: Options
    jobs: int
    gpus: Sequence[str] = ()
    deadline: float | None = None
    _free: SimpleQueue[str | None] = field(default_factory=SimpleQueue)
    _processes: set[BaseProcess] = field(default_factory=set)
    _stopped: bool = False
    _names: dict[Cell, str] = field(default_factory=dict)
    _starts: dict[Cell, str | None] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], announce: Announce) -> list[Cell]:
        """Run cells in their order, but those that begin with a float network only when that is recorded.

        Args:
            cells: to be run.
            announce: called with each that ended and its record, ``None`` if another program is at work on it.

        Returns:
            Those that have no new record: the deadline came first, or another program is at work on them.
        """
        os.environ["OMP_NUM_THREADS"] = str(self.options.threads)  # of the server, and so of all that it forks
        self._context = multiprocessing.get_context(START)
        if START == "forkserver":
            self._context.set_forkserver_preload(["recipes.compare.training"])
        for gpu in islice(cycle(self.gpus or [None]), self.jobs):
            self._free.put(gpu)
        waiting, left = list(cells), []
        running: dict[Future[Record | None], Cell] = {}
        # Names are digests of files: they are asked for once.
        self._names = {cell: cell.name for cell in cells}
        self._starts = {cell: None if cell.start is None else cell.start.name for cell in cells}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while True:
                    while len(running) < self.jobs and (cell := self._next(waiting, list(running.values()))):
                        waiting.remove(cell)
                        running[pool.submit(self._run, cell)] = cell
                    if not running:
                        return left + waiting
                    ended, _ = wait(running, self._seconds_left(), FIRST_COMPLETED)
                    if not ended:
                        self._stop()
                    for future in ended:
                        cell, record = running.pop(future), future.result()
                        left += [cell] if record is None else []
                        if record is not None or not self._stopped:
                            announce(cell, record)
            except BaseException:
                self._stop()
                raise

    def _next(self, waiting: Sequence[Cell], running: Sequence[Cell]) -> Cell | None:
        """The first cell that can be run now."""
        if self._stopped or self._seconds_left() == 0:
            return None
        unfinished = {self._names[cell] for cell in (*waiting, *running)}
        return next((cell for cell in waiting if self._can_start(cell, unfinished)), None)

    def _can_start(self, cell: Cell, unfinished: set[str]) -> bool:
        start = self._starts[cell]
        return start is None or (start not in unfinished and self.results.record(start) is not None)

    def _seconds_left(self) -> float | None:
        """Seconds to the deadline; ``None`` if there is none, or if it has passed and processes are ending."""
        return None if self.deadline is None or self._stopped else max(0.0, self.deadline - time.monotonic())

    def _run(self, cell: Cell) -> Record | None:
        """Run a cell in a process, and wait for it; return its record if it has a new one."""
        if self._stopped:
            return None
        folder = self.results.run(cell.name)
        before = self.results.record(cell.name)
        gpu = self._free.get()
        process = self._context.Process(target=_work, args=(cell, self.results, self.options, gpu))
        self._processes.add(process)
        process.start()
        if self._stopped:  # while it was started
            process.kill()
        process.join()
        self._processes.discard(process)
        self._free.put(gpu)
        record = self.results.record(cell.name)
        if record != before:
            return record
        if process.exitcode == BUSY or self._stopped:
            return None
        return self._died(cell, folder, process.exitcode) if process.exitcode else record

    def _died(self, cell: Cell, folder: Path, exitcode: int | None) -> Record:
        """Record a process that ended without a record, such as one that the system killed for want of memory."""
        from recipes.compare.training import failure  # not at the top: it imports torch

        how = f"signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit status {exitcode}"
        record = cell.described() | failure(cell, f"the process ended by {how}", folder)
        self.results.write(cell.name, record)
        return record

    def _stop(self) -> None:
        """Leave nothing running."""
        self._stopped = True
        for process in list(self._processes):
            if process.pid is not None:
                process.kill()  # not `terminate()`, which Lightning would answer by finishing its step


BUSY = 75
"""Exit status of a process that found its cell in the hands of another program: try again later."""


def _work(cell: Cell, results: Results, options: Options, gpu: str | None) -> None:
    """Run a cell in this process, which writes to the log of the run and to no terminal."""
    if gpu is not None:  # before anything here asks for a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    exit_with_parent()
    log = os.open(results.run(cell.name) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    from recipes.compare.training import run

    sys.exit(BUSY if run(cell, results, options) is None else 0)
