"""Run the whole study in worker processes.

Torch is imported in the workers only: the process that draws the progress bar leaves the cores to them.
"""

from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass

from recipes.quickstart.methods import CASES
from recipes.quickstart.results import Results, Run, Setup
from recipes.quickstart.workers import submit_all, worker_pool


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        seeds: one run of every row for each.
        epochs: passes over the training set in each run.
        workers: processes at work at once, with one thread each; no number depends on it but times.
        timing_rounds: training steps of every row that are timed.
    """

    seeds: list[int]
    epochs: int
    workers: int
    timing_rounds: int = 30

    @property
    def tasks(self) -> list[tuple[str, int, int, bool]]:
        """Arguments of each training run, seed by seed; the first seed's weights are drawn."""
        return [(name, seed, self.epochs, seed == self.seeds[0]) for seed in self.seeds for name in CASES]


def run_study(study: Study, announce: Callable[[str, int], None]) -> Results:
    """Train every row from every seed, then time training steps while nothing else runs.

    Args:
        study: what to run.
        announce: called with what is being done and the number of networks trained so far.
    """
    announce("starting workers", 0)
    with worker_pool(study.workers, _prepare) as pool:
        runs: list[Run] = []
        for future in as_completed(submit_all(pool, _train, study.tasks)):
            runs.append(future.result())
            announce("training", len(runs))
        announce("timing training steps", len(runs))
        setup: Setup = pool.submit(_describe, study).result()
        step_time: dict[str, list[float]] = pool.submit(_time, study.timing_rounds).result()
    rank = {name: index for index, name in enumerate(CASES)}
    return Results(setup, sorted(runs, key=lambda run: (rank[run.case], run.seed)), step_time)


def _prepare() -> None:
    from recipes.quickstart.training import be_quiet

    be_quiet()


def _train(name: str, seed: int, epochs: int, drawn: bool) -> Run:
    from recipes.quickstart.training import train

    return train(name, seed, epochs, drawn)


def _describe(study: Study) -> Setup:
    from recipes.quickstart.training import describe

    return describe(study.seeds, study.epochs, study.workers)


def _time(rounds: int) -> dict[str, list[float]]:
    from recipes.quickstart.timing import relative_step_times

    return relative_step_times(rounds)
