"""Compare methods of quantization under one recipe.

    python -m recipes.compare all RECIPE --methods lsq pact --bits 2/2 4/4 2/32 --seeds 5 --jobs 2 --results FOLDER
    python -m recipes.compare run RECIPE --method lsq --bits 2/2 --seed 0 --results FOLDER
    python -m recipes.compare table --results FOLDER

`all` runs what is missing and skips what is recorded; it may be killed at any moment and called again, or stops by
itself after `--budget` seconds; interrupted runs go on from their last epoch. `run` is one cell of it, for a scheduler
of your own: many may work on one folder. `table` writes tables and figures.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from recipes.compare.cells import (
    FLOAT,
    Cell,
    Method,
    Options,
    Width,
    all_cells,
    check_recipe,
    choose,
    left_out,
    methods,
    parse_width,
)
from recipes.compare.records import FAILED, Results, read
from recipes.compare.runs import run_missing, said
from recipes.compare.scheduler import BUSY, Scheduler
from recipes.compare.summary import settings_of
from recipes.compare.tables import BASELINE, csv_table, markdown_tables

WRONG_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The exit status: 0, 1 if a run failed, 2 for wrong input, 75 if runs are left for another call.
    """
    options = parse(arguments)
    actions = {"all": run_all, "run": run_one, "table": write_tables}
    try:
        return actions[options.action](options)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on", INTERRUPTED)
    except (OSError, ValueError) as error:
        return _fail(str(error), WRONG_INPUT)


def run_all(options: argparse.Namespace) -> int:
    """Run every cell that is missing."""
    deadline = None if options.budget is None else time.monotonic() + options.budget
    check_recipe(options.recipe, options.overrides)
    chosen = choose(methods(), options.methods)
    results, console = Results(options.results), Console(stderr=True)
    for line in left_out(chosen, options.bits):
        console.print(line, highlight=False)
    cells = list(
        all_cells(options.recipe, chosen, options.bits, range(options.seeds), options.overrides, _where(options))
    )
    scheduler = Scheduler(results, _how(options), options.jobs, options.gpus, deadline)
    return run_missing(cells, scheduler, console)


def run_one(options: argparse.Namespace) -> int:
    """Run one cell in this process."""
    check_recipe(options.recipe, options.overrides)
    (method,) = choose(methods(), [options.method])
    cell = Cell(
        options.recipe, method, _width(method, options.bits), options.seed, tuple(options.overrides), _where(options)
    )
    from recipes.compare.training import run  # not at the top: it imports torch

    record = run(cell, Results(options.results), _how(options))
    print(f"{cell.label}: {said(record)}")
    return BUSY if record is None else int(record["status"] == FAILED)


def write_tables(options: argparse.Namespace) -> int:
    """Write tables and figures, and all records as one file of JSON lines."""
    import json

    from recipes.compare.figures import draw

    choose(methods(), [options.baseline])
    records = read(options.results)
    folder = options.output or (options.results if options.results.is_dir() else options.results.parent) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (folder / "table.md").write_text(markdown_tables(records, options.baseline) + "\n", encoding="utf-8")
    (folder / "table.csv").write_text(csv_table(records, options.baseline), encoding="utf-8")
    groups = settings_of(records)
    for (recipe, setting, device, torch), group in groups.items():
        prefix = f"{recipe}--{setting}--{device}--torch{torch}--".replace(" ", "-") if len(groups) > 1 else ""
        draw(group, folder, prefix)
    print(f"written: {folder}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("recipe", type=Path, help="YAML file of settings, usually of a float network")
    shared.add_argument("--results", type=Path, required=True, metavar="FOLDER", help="where records are kept")
    shared.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="settings in place of the recipe's, such as trainer.max_epochs=3")  # fmt: skip
    shared.add_argument("--data-path", metavar="FOLDER", help="data.path; unlike --set no part of what a run is")
    shared.add_argument("--threads", type=_positive, default=1, help="of torch on the CPU, for each run; default: 1")
    shared.add_argument("--retry", action="store_true", help="run again what failed")
    shared.add_argument("--start-over", action="store_true",
                        help="do not go on from the last epoch of interrupted runs, for data that cannot")  # fmt: skip
    every = actions.add_parser("all", parents=[shared], help="run what is missing")
    every.add_argument("--methods", nargs="+", default=[], metavar="NAME", help=f"default: all: {', '.join(methods())}")
    every.add_argument("--bits", nargs="+", type=_bits, default=[Width(2, 2)], metavar="W/A",
                       help="bits of weights / activations, 32 for float ones; default: 2/2")  # fmt: skip
    every.add_argument("--seeds", type=_positive, default=5, metavar="N", help="seeds 0 to N - 1; default: 5")
    every.add_argument("--jobs", type=_positive, default=1, help="runs at a time; default: 1")
    every.add_argument("--gpus", nargs="+", default=[], metavar="GPU",
                       help="GPUs to spread them over, as in CUDA_VISIBLE_DEVICES")  # fmt: skip
    every.add_argument("--budget", type=_seconds, metavar="SECONDS", help="stop after this time; default: never")
    one = actions.add_parser("run", parents=[shared], help="run one cell")
    one.add_argument("--method", required=True, metavar="NAME", help=f"{', '.join(methods())}")
    one.add_argument("--bits", type=_bits, metavar="W/A", help="as above; none for the method float")
    one.add_argument("--seed", type=int, default=0)
    table = actions.add_parser("table", help="write tables and figures")
    table.add_argument("--results", type=Path, required=True, metavar="FOLDER", help="folder, or file of JSON lines")
    table.add_argument("--baseline", default=BASELINE, help=f"method to compare with besides float; {BASELINE}")
    table.add_argument("--output", type=Path, metavar="FOLDER", help="default: report, in the folder of results")
    return parser.parse_args(arguments)


def _width(method: Method, width: Width | None) -> Width:
    if method.name == FLOAT:
        if width is not None:
            raise ValueError(f"`--bits` must be left out for the method {FLOAT}, got {width}")
        return Width(None, None)
    if width is None or not method.admits(width):
        got = "none" if width is None else str(width)
        raise ValueError(f"`--bits` of {method.name} must be of {method.widths}, got {got}")
    return width


def _how(options: argparse.Namespace) -> Options:
    return Options(options.threads, options.start_over, options.retry)


def _where(options: argparse.Namespace) -> tuple[str, ...]:
    return () if options.data_path is None else (f"data.path={options.data_path}",)


def _bits(text: str) -> Width:
    try:
        return parse_width(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, 0 or more, got {text!r}")
    return seconds


def _fail(message: str, status: int) -> int:
    Console(stderr=True).print(message, style="red", soft_wrap=True, highlight=False, markup=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
