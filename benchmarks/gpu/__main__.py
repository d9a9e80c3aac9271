"""Everything that a GPU is needed for, what matters most first: tests, costs, and the tables, first seeds first.

Run: python -m benchmarks.gpu --data-root FOLDER --results FOLDER --budget 580

It stops after its budget, or may be killed at any moment, and goes on with the next call. FOLDER has a folder for each
data set, named as the options below say; one that is not there is left out, with a word. Exit status: 0 if all is done,
75 if something is left, 1 if something failed, which `--retry` runs again.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import torch

from benchmarks.gpu import ablations, cifar10, cost, imagenette, penn_treebank
from benchmarks.gpu.study import NO_GPU, Study, add_arguments, fail, parsed, run, seeds_of
from recipes.compare.cells import Cell
from recipes.compare.runs import SOME_FAILED, SOME_LEFT
from recipes.environment import ROOT, source_digest

STUDIES: tuple[Study, ...] = tuple(module.STUDY for module in (penn_treebank, cifar10, imagenette, ablations))
TESTS = tuple(f"tests/{folder}" for folder in ("nn", "kernels", "functional", "recipes", "benchmarks"))
"""Folders that have tests marked for a GPU."""

COST_SHARE = 0.5
"""Of the budget of a call, what the cost may take at most; what is left of it comes in the next call."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing; return the exit status."""
    started = time.monotonic()
    asked = parse(arguments)
    if not (asked.dry_run or torch.cuda.is_available()):
        return fail(NO_GPU)
    statuses = [run_tests(asked.results, asked.budget, again=asked.retry)]
    share = None if asked.budget is None else COST_SHARE * asked.budget
    statuses.append(cost.run(asked.results, share, started, dry_run=asked.dry_run, retry=asked.retry))
    statuses.append(run(cells(asked), asked, started))
    # What is left counts only if nothing failed.
    return next((status for status in statuses if status not in (0, SOME_LEFT)), max(statuses))


def run_tests(results: Path, budget: float | None, *, again: bool = False) -> int:
    """Run the tests that need a GPU, once with these sources; the log is in the results.

    Args:
        results: folder of the results.
        budget: seconds of this call, of which they may take a half.
        again: run them also if they have failed before.
    """
    ended, log = results / "tests_status.json", results / "tests.txt"
    state = [source_digest(), torch.__version__, _gpu()]
    before = json.loads(ended.read_text()) if ended.exists() else {}
    if before.get("state") == state and not (again and before["status"]):
        return int(before["status"])
    results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *TESTS]  # a package that is missing leaves the other tests
    limit = None if budget is None else budget / 2
    with log.open("w") as file:
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return SOME_LEFT
    status = SOME_FAILED if done.returncode else 0
    print(f"tests that need a GPU: {'failed' if status else 'passed'}; see {log}", flush=True)
    ended.write_text(json.dumps({"state": state, "status": status}))
    return status


def cells(asked: argparse.Namespace) -> list[Cell]:
    """The cells of all tables whose data are there, in the order in which to run them.

    The first seed of all rows comes before the second, and of a seed the first width of all tables before the second;
    of a width, tables take turns, so that each has rows when time runs out.
    """
    folders = {study.name: asked.data_root / getattr(asked, study.name) for study in STUDIES}
    for study in STUDIES:
        if not folders[study.name].is_dir():
            print(f"{study.name} is left out: there is no folder {folders[study.name]}", flush=True)
    present = [study for study in STUDIES if folders[study.name].is_dir()]
    found: dict[str, Cell] = {}
    for seed in range(max((seeds_of(study, asked) for study in present), default=0)):
        due = [study for study in present if seed < seeds_of(study, asked)]
        rows = [(study, list(study.cells(asked, folders[study.name], [seed]))) for study in due]
        for place in range(max(len(study.widths) for study in due)):
            turns = [[cell for cell in row if study.place(cell.width) == place] for study, row in rows]
            for cell in chain.from_iterable(zip_longest(*turns)):
                if cell is not None:
                    found.setdefault(cell.name, cell)  # two tables may share the float network
    return list(found.values())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True, metavar="FOLDER", help="folder of the data sets")
    names = {"penn_treebank": "ptb", "cifar10": "cifar10", "imagenette": "imagenette128", "ablations": "cifar10"}
    for study in STUDIES:
        option, name = f"--{study.name.replace('_', '-')}", names[study.name]
        parser.add_argument(option, dest=study.name, default=name, metavar="NAME", help=f"its folder; default: {name}")
    add_arguments(parser)
    return parsed(parser, arguments)


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    raise SystemExit(main())
