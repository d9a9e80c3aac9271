"""Run many cells, each in a process of its own, which never outlives this one."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
    """

    results: Results
    options: Options
    jobs: int
    gpus: Sequence[str] = ()
    _free: SimpleQueue[str | None] = field(default_factory=SimpleQueue)
    _processes: set[BaseProcess] = field(default_factory=set)
    _stopped: bool = False

    def run(self, cells: Sequence[Cell], announce: Announce) -> None:
        """Run cells; call ``announce`` with each and its record, ``None`` if another program is at work on it."""
        os.environ["OMP_NUM_THREADS"] = str(self.options.threads)  # of the server, and so of all that it forks
        self._context = multiprocessing.get_context(START)
        if START == "forkserver":
            self._context.set_forkserver_preload(["recipes.compare.training"])
        for gpu in islice(cycle(self.gpus or [None]), self.jobs):
            self._free.put(gpu)
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._run, cell): cell for cell in cells}
            try:
                for future in as_completed(futures):
                    announce(futures[future], future.result())
            except BaseException:
                self._stop()
                raise

    def _run(self, cell: Cell) -> Record | None:
        """Run a cell in a process, and wait for it."""
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
        if process.exitcode == BUSY or self._stopped:
            return None
        if record == before and process.exitcode:
            record = self._died(cell, folder, process.exitcode)
        return record

    def _died(self, cell: Cell, folder: Path, exitcode: int | None) -> Record:
        """Record a process that ended without a record, such as one that the system killed for want of memory."""
        from recipes.compare.training import failure  # not at the top: it imports torch

        how = f"signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit status {exitcode}"
        record = cell.described() | failure(f"the process ended by {how}", folder)
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
