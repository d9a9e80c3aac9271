"""Command line of the benchmarks of speed, and what their records have in common."""

import argparse
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import Measurement, Quartiles, ratio
from benchmarks.records import Record, append, results_path
from recipes.environment import environment


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked to do.

    Attributes:
        device: where to measure.
        repeats: number of rounds.
        quick: measure only what tells soonest whether something became slower.
    """

    device: torch.device
    repeats: int
    quick: bool = False

    @property
    def budget(self) -> float:
        """Seconds of rounds after which a slow case leaves."""
        return 1.0 if self.quick else 4.0


@dataclass(frozen=True)
class Benchmark:
    """One question, and the program that measures an answer.

    Attributes:
        name: of its file.
        description: its docstring.
        run: yields a list of records for each group of cases that were measured in the same rounds.
        repeats: rounds, if not told otherwise.
        quick_repeats: rounds of a quick run.
        threads: numbers of threads it is run with one after the other, if not told otherwise; as torch chooses if none.
    """

    name: str
    description: str
    run: Callable[[Options], Iterator[list[Record]]]
    repeats: int
    quick_repeats: int
    threads: tuple[int, ...] = ()

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Measure, print, and append the records; a quick run appends only to a file that is named."""
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--output", type=Path, help="file of records; default: in results/, none for --quick")
        parser.add_argument("--repeats", type=int, help=f"rounds; default {self.repeats}, quick {self.quick_repeats}")
        parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
        parser.add_argument("--quick", action="store_true", help="fewer rounds of fewer cases, for a first look")
        parser.add_argument("--threads", type=int, help=f"of torch on the CPU; default: {self._default_threads}")
        given = parser.parse_args(arguments)
        repeats = given.repeats or (self.quick_repeats if given.quick else self.repeats)
        options = Options(given.device, repeats, given.quick)
        output = given.output or (None if given.quick else results_path(self.name, options.device))
        torch.manual_seed(0)
        warnings.filterwarnings("ignore", module=r"lightning|torch|brevitas|torchao")
        named = {"bench": self.name, "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        for threads in (given.threads,) if given.threads else self.threads or (torch.get_num_threads(),):
            torch.set_num_threads(threads)
            described = named | environment(options.device)
            for group in self.run(options):
                report(group)
                for record in group if output else ():
                    append(output, record | described)

    @property
    def _default_threads(self) -> str:
        return " and ".join(map(str, self.threads)) or "as torch chooses"


def records(measured: Iterable[tuple[str, Measurement]], parameters: Record, reference: str | None) -> list[Record]:
    """Records of cases that were measured in the same rounds.

    Args:
        measured: each case and what was measured of it.
        parameters: what the cases have in common.
        reference: the case that the others are compared with.
    """
    return [
        {"parameters": parameters, "case": case, "reference": reference, **measurement.fields()}
        for case, measurement in measured
    ]


def report(group: Sequence[Record]) -> None:
    """Print a line for each record."""
    print(", ".join(f"{name} {value}" for name, value in group[0]["parameters"].items()))
    for record in group:
        line = f"  {record['case']:<36} {record['seconds'][1] * 1000:>10.3f} ms"
        if record["reference"] not in (None, record["case"]):
            line += f"   {show(ratio(group, record['case'], record['reference'])):>22}"
        if "peak_bytes" in record:
            line += f"   peak {record['peak_bytes'] / 2**20:.1f} MiB, kept {record['kept_bytes'] / 2**20:.1f}"
        print(line, flush=True)


def show(value: Quartiles, digits: int = 2) -> str:
    """Median and quartiles, as text."""
    return f"{value.median:.{digits}f} ({value.low:.{digits}f}-{value.high:.{digits}f})"
