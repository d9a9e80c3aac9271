"""A table whose cells are trained on a GPU: what is common to all of them, and their command line."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

import recipes
from benchmarks.records import Record
from recipes.compare.cells import FOLDER, Cell, Options, Width, all_cells, choose, methods, parse_width
from recipes.compare.records import Results
from recipes.compare.runs import run_missing
from recipes.compare.scheduler import Scheduler

RECIPES = Path(recipes.__file__).parent
METHODS = Path(__file__).parent / "methods"
NO_GPU = "needs a CUDA device; `--dry-run` goes through everything on a CPU"
WRONG_INPUT = 2
DRY_RUN = tuple(f"trainer.limit_{part}_batches=2" for part in ("train", "val", "test"))


@dataclass(frozen=True)
class Study:
    """What a table compares.

    Attributes:
        name: of the table, and of the folder of its data in ``--data-root``.
        recipes: names of the recipes of its float networks, the more important first.
        methods: names of the methods, the more important first; the float network among them.
        widths: such as ``2/2``, the more important first.
        epochs: of each training, if not told otherwise.
        seeds: number of them, if not told otherwise.
        schedule: settings that depend on the number of epochs.
        baselines: methods that the others are compared with, besides the float network.
        folder: of the methods.
        images: whether the data are images, which are kept on the GPU, and the networks convolutional.
    """

    name: str
    recipes: tuple[str, ...]
    methods: tuple[str, ...]
    widths: tuple[str, ...]
    epochs: int
    seeds: int
    schedule: Callable[[int], Sequence[str]]
    baselines: tuple[str, ...]
    folder: Path = FOLDER
    images: bool = True

    def cells(self, asked: argparse.Namespace, data: Path, seeds: Iterable[int]) -> Iterator[Cell]:
        """Every cell of some seeds; the first seed of all rows before the second of any.

        Args:
            asked: the command line; see :func:`add_arguments`.
            data: folder of the data.
            seeds: which.
        """
        chosen = choose(methods(self.folder), self.methods)
        widths = self.columns[:1] if asked.dry_run else self.columns
        overrides, where = self.overrides(asked), self.where(asked, data)
        for seed in seeds:
            for recipe in self.recipes:
                yield from all_cells(RECIPES / f"{recipe}.yaml", chosen, widths, [seed], overrides, where)

    def overrides(self, asked: argparse.Namespace) -> list[str]:
        """Settings in place of those of the recipe."""
        epochs = 1 if asked.dry_run else asked.epochs or self.epochs
        settings = [f"trainer.max_epochs={epochs}", "trainer.num_sanity_val_steps=0", *self.schedule(epochs)]
        settings.append("quantization.record_every_n_steps=500")  # a record waits for the device
        if self.images:
            settings += [f"trainer.precision={asked.precision}", "model.channels_last=true"]
            settings += ["model.compiled=true"] if asked.compile else []
        if asked.dry_run:
            settings += [*DRY_RUN, "data.batch_size=16", "data.eval_batch_size=16"]
        return settings

    def where(self, asked: argparse.Namespace, data: Path) -> list[str]:
        """Settings that say where the data are."""
        path = [f"data.path={data.resolve()}"]
        if not self.images:
            return path
        kept = (asked.results / "decoded" / self.recipes[0]).resolve()
        return [*path, f"data.device={device()}", f"data.cache={kept}"]

    def of(self, records: Iterable[Record]) -> list[Record]:
        """Those of some records that are of this study."""
        return [one for one in records if one["recipe"] in self.recipes and one["method"] in self.methods]

    def place(self, width: Width) -> int:
        """How many widths are more important than this one; none than float."""
        return 0 if width.weight_bits is None else self.columns.index(width)

    @property
    def columns(self) -> list[Width]:
        """Widths of the table."""
        return [parse_width(text) for text in self.widths]


def main(study: Study, description: str, arguments: Sequence[str] | None = None) -> int:
    """Train what is missing of one table; return the exit status, as of ``recipes.compare``."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.gpu.{study.name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the data, as for the recipe")
    add_arguments(parser)
    asked = parsed(parser, arguments)
    if not (asked.dry_run or torch.cuda.is_available()):
        return fail(NO_GPU)
    cells = list(study.cells(asked, asked.data, range(seeds_of(study, asked))))
    return run(cells, asked, started)


def run(cells: Sequence[Cell], asked: argparse.Namespace, started: float) -> int:
    """Run cells until the budget is spent; return the exit status."""
    deadline = None if asked.budget is None else started + asked.budget
    scheduler = Scheduler(Results(asked.results), Options(retry=asked.retry), asked.jobs, asked.gpus, deadline)
    try:
        return run_missing(cells, scheduler, Console(stderr=True))
    except (OSError, ValueError) as error:
        return fail(str(error))


def seeds_of(study: Study, asked: argparse.Namespace) -> int:
    """How many seeds to run."""
    return 1 if asked.dry_run else asked.seeds or study.seeds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all programs take that train."""
    add_common_arguments(parser)
    parser.add_argument("--epochs", type=int, help="of each training; default: as the program says")
    parser.add_argument("--seeds", type=int, help="default: as the program says")
    parser.add_argument("--jobs", type=int, default=6, help="runs at a time; default: 6")
    parser.add_argument("--gpus", nargs="+", default=[], metavar="GPU", help="to spread them over; default: the first")
    parser.add_argument("--precision", default="bf16-mixed", help="of the Trainer, for images; default: bf16-mixed")
    parser.add_argument("--compile", action="store_true", help="compile networks for images")


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; what a dry run records is kept apart."""
    asked = parser.parse_args(arguments)
    if asked.dry_run:
        asked.results = asked.results / "dry_run"
    return asked


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all programs take."""
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER", help="where records are kept")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop after this time; default: never")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--dry-run", action="store_true", help="two batches of each run, on any device")


def device() -> torch.device:
    """The GPU, or for a dry run without one the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def halves_and_quarters(epochs: int) -> list[str]:
    """Divide the learning rate after a half and after three quarters of the epochs, as He et al. 2015 nearly do."""
    return [f"model.milestones={json.dumps([0.5 * epochs, 0.75 * epochs])}"]


def fail(message: str) -> int:
    """Say what is wrong; return the exit status."""
    Console(stderr=True).print(message, style="red", soft_wrap=True, highlight=False, markup=False)
    return WRONG_INPUT
