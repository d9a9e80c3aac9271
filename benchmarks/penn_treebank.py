"""Perplexity of quantized language models on the Penn Treebank, by method, width, network and seed.

Question: which method loses least against the float network at each width?  Not measured: other texts, large networks.

Two settings for a CPU. `reduced` takes minutes for a run on one core, with a part of the training text and few epochs;
quantized networks start from the float one of the same seed. `beginning` is one pass over a smaller part, from scratch.
Both compare methods and say nothing about published perplexities: `benchmarks.gpu.penn_treebank` has the setting for
that. Validation and test text are always whole.
Weights of quantized networks are clipped to [-1, 1]; everything else is equal for all. The balanced methods and
`uniform_mean` have their outermost level at 1.25 times the mean magnitude, `uniform_max` at the largest.

Run: python -m benchmarks.penn_treebank --path FOLDER --setting reduced
     python -m benchmarks.penn_treebank --path FOLDER --budget 600 --cells 'lstm-W2A2-*'

It can be interrupted at any time, or stops by itself after `--budget` seconds, and goes on when called again. Two
processes may work on disjoint `--cells` at once.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.penn_treebank_cells import SETTINGS, Cell, Setting, all_cells, select
from benchmarks.penn_treebank_run import BudgetSpent, Run
from benchmarks.records import Record, append, read, results_path
from recipes.data.module import TextModule
from recipes.data.text import PennTreebank
from recipes.environment import environment

BENCHMARK = "penn_treebank"


@dataclass
class Study:
    """Runs cells, one after the other.

    Args:
        setting: how to train.
        data: the text.
        output: file of the records.
        work: folder of unfinished and trained networks.
        device: where to train.
        budget: seconds after which to stop, or `None`; at least one step is trained in any case,
            and an epoch with Lightning before 2.5, which resumes only after whole ones.
    """

    setting: Setting
    data: TextModule
    output: Path
    work: Path
    device: torch.device
    budget: float | None = None

    def __post_init__(self) -> None:
        self.deadline = None if self.budget is None else time.monotonic() + self.budget

    def run(self, cells: Iterable[Cell]) -> int:
        """Train the cells that are not recorded yet until the budget is spent; return how many were finished.

        Raises:
            ValueError: if the file holds records of another setting under the same name.
        """
        finished = 0
        for cell in cells:
            if cell in self.recorded():
                continue
            if finished and self.deadline is not None and time.monotonic() > self.deadline:
                break
            try:
                self._finish(cell)
            except BudgetSpent:
                break
            finished += 1
        return finished

    def recorded(self) -> set[Cell]:
        """Cells that the file holds records of."""
        records = [record for record in read(self.output) if record["setting"] == self.setting.name]
        if any(record["numbers"] != self.setting.numbers() for record in records):
            raise ValueError(
                f"{self.output.name} must hold records of one setting {self.setting.name!r}, it holds some with other "
                "numbers: use another `--output`, or give the setting another name"
            )
        return {Cell(*(record[name] for name in ("network", "width", "method", "seed"))) for record in records}

    def folder(self, cell: Cell) -> Path:
        """Where a cell keeps its networks."""
        return self.work / self.setting.name / cell.name

    def started(self, cell: Cell) -> bool:
        """Whether there is something to go on with."""
        return (self.folder(cell) / "last.ckpt").exists()

    def _finish(self, cell: Cell) -> None:
        run = Run(cell, self.setting, self.data, self.folder(cell), self.device, self.deadline)
        outcome = run.finish(self._start(cell))
        described: Record = {"setting": self.setting.name, "numbers": self.setting.numbers()}
        append(self.output, cell.options() | described | outcome | environment(self.device))
        run.last.unlink(missing_ok=True)

    def _start(self, cell: Cell) -> Path | None:
        """Checkpoint whose weights a cell starts with."""
        if not self.setting.from_float or cell == cell.reference:
            return None
        path = self.folder(cell.reference) / "best.ckpt"
        if cell.reference not in self.recorded() or not path.exists():
            raise FileNotFoundError(
                f"{cell.name} starts from the float network, expected it in {path}: run `--cells "
                f"{cell.reference.name}` first, with the same `--work` and `--output`"
            )
        return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or the part of it that was asked for."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    setting, device = SETTINGS[options.setting], torch.device(options.device)
    data = PennTreebank(options.path, setting.batch_size, setting.steps, setting.eval_batch_size, setting.train_share)
    output = options.output or results_path(BENCHMARK, device)
    study = Study(setting, data, output, options.work, device, options.budget)
    cells = select(all_cells(setting), options.cells)
    if options.list:
        recorded = study.recorded()
        for cell in cells:
            print(cell.name, "done" if cell in recorded else "started" if study.started(cell) else "open")
        return
    finished = study.run(cells)
    print(f"{finished} runs added to {output.name}, {len(set(cells) - study.recorded())} to do")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", metavar="FOLDER", help="folder with the text; default: the Hugging Face hub")
    parser.add_argument("--setting", choices=SETTINGS, default="reduced")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop after this time; default: never")
    parser.add_argument(
        "--cells", nargs="*", default=[], metavar="PATTERN", help="globs on the names that --list shows"
    )
    parser.add_argument("--list", action="store_true", help="show the cells and what was done; train nothing")
    parser.add_argument("--work", type=Path, default=Path("penn_treebank_runs"), metavar="FOLDER")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: the records in benchmarks/results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
