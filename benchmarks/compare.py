"""Tell whether a change made something slower than the last committed record of the same device, torch and threads.

Absolute times say nothing on a machine that does other work too; compared are ratios to a reference that is measured in
the same rounds. A case counts as slower if its lower quartile is above the upper quartile of the record and its median
more than a tenth above the record's, and if measuring again says so too. Exit status 1 if anything is slower.

Run: python -m benchmarks.compare [bench_weights ..] [--device cuda] [--threads 1]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.bars import last_runs
from benchmarks.harness import Quartiles, ratio
from benchmarks.program import show
from benchmarks.records import Record, read, results_path
from benchmarks.suite import BENCHMARKS
from recipes.environment import ROOT, git

LEAST_CHANGE = 1.1

Name = tuple[str, str]
"""Parameters of a group, as JSON, and a case of it."""


@dataclass(frozen=True)
class Change:
    """A ratio as recorded, and as measured now."""

    before: Quartiles
    after: Quartiles

    @property
    def verdict(self) -> str:
        """Say ``"slower"``, ``"faster"`` or ``"same"``, the last also where the spread leaves it open."""
        if _is_above(self.after, self.before):
            return "slower"
        return "faster" if _is_above(self.before, self.after) else "same"


def case_ratios(records: Sequence[Record]) -> dict[Name, Quartiles]:
    """Ratio of each case to its reference."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(record["parameters"], sort_keys=True), []).append(record)
    return {
        (parameters, record["case"]): ratio(group, record["case"], record["reference"])
        for parameters, group in groups.items()
        for record in group
        if record["case"] != record["reference"]
    }


def changes(before: Sequence[Record], after: Sequence[Record]) -> dict[Name, Change]:
    """Changes of the cases that both runs measured."""
    old, new = case_ratios(before), case_ratios(after)
    return {name: Change(old[name], value) for name, value in new.items() if name in old}


def confirmed(found: dict[Name, Change], again: Callable[[], dict[Name, Change]]) -> set[Name]:
    """Cases that are slower, and are so again if anything is; ``again`` is called only then."""
    slower = _slower(found)
    return slower & _slower(again()) if slower else slower


def baseline(records: Iterable[Record], threads: int) -> list[Record]:
    """Records of the last run with as many threads."""
    return last_runs(record for record in records if record["threads"] == threads)


def committed(path: Path) -> list[Record]:
    """Records of a file as it was committed last; without git, as it is."""
    text = git("show", f"HEAD:{path.relative_to(ROOT).as_posix()}")
    return read(path) if text is None else [json.loads(line) for line in text.splitlines()]


def measure_again(name: str, arguments: Sequence[str]) -> list[Record]:
    """Run a benchmark in its quick form, in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        output = Path(root) / "records.jsonl"
        program = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(output), *arguments]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
        return read(output)


def compare(name: str, before: Sequence[Record], arguments: Sequence[str]) -> bool:
    """Measure one benchmark, print its changes, and return whether anything became slower."""
    found = changes(before, measure_again(name, arguments))
    slower = confirmed(found, lambda: changes(before, measure_again(name, arguments)))
    for (parameters, case), change in found.items():
        verdict = change.verdict
        if verdict == "slower" and (parameters, case) not in slower:
            verdict = "slower once, not again"
        print(f"{name} {parameters} {case}: {show(change.before)} -> {show(change.after)}  {verdict}", flush=True)
    return bool(slower)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare all benchmarks, or those named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="NAME", help=f"default: {' '.join(BENCHMARKS)}")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: as torch chooses")
    options = parser.parse_args(arguments)
    if unknown := set(options.benchmarks) - set(BENCHMARKS):
        parser.error(f"benchmarks must be of {sorted(BENCHMARKS)}, got {sorted(unknown)}")
    passed = ["--device", str(options.device), "--threads", str(options.threads)]
    slower = []
    for name in options.benchmarks or BENCHMARKS:
        path = results_path(name, options.device)
        if before := baseline(committed(path), options.threads):
            slower += [name] if compare(name, before, passed) else []
        else:
            print(f"{name}: {path.name} holds no record with {options.threads} threads to compare with")
    print(f"slower: {', '.join(slower)}" if slower else "nothing is slower")
    return int(bool(slower))


def _is_above(one: Quartiles, other: Quartiles) -> bool:
    return one.low > other.high and one.median > LEAST_CHANGE * other.median


def _slower(found: dict[Name, Change]) -> set[Name]:
    return {name for name, change in found.items() if change.verdict == "slower"}


if __name__ == "__main__":
    raise SystemExit(main())
