"""What quantizing costs on a GPU: quantizers alone, whole training steps, recurrent layers, and where the time goes.

Question: is quantizing free next to training, and if not, what takes the time?  Not measured: accuracy, several GPUs.
Run: python -m benchmarks.gpu.cost --results FOLDER --budget 580

Cases of a group take turns, as everywhere in these benchmarks. Each group is recorded when it is done, in
``FOLDER/cost.jsonl``, and not measured again; one that fails is recorded with its error and does not stop the others.
The picture and the trace of a step are put beside it.
"""

import argparse
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import bench_recurrent
from benchmarks.gpu import kernels, quantizers, steps
from benchmarks.gpu.study import NO_GPU, add_common_arguments, device, fail, parsed
from benchmarks.program import Options, report
from benchmarks.records import Record, append, read
from recipes.compare.runs import SOME_FAILED, SOME_LEFT
from recipes.environment import environment

FILE = "cost.jsonl"
LAST_START = 0.75
"""Share of the budget after which no group is begun: one that compiles takes minutes."""


@dataclass(frozen=True)
class Group:
    """Cases that are measured together.

    Attributes:
        bench: which question they belong to.
        label: what tells them from the other groups of the question.
        measure: returns their records.
    """

    bench: str
    label: str
    measure: Callable[[], list[Record]]


def groups(options: Options, folder: Path, size: steps.Size, *, dry_run: bool) -> Iterator[Group]:
    """All groups, the more important first; of a dry run the smallest of each kind."""
    for name, compiled in list(steps.groups())[: 1 if dry_run else None]:
        label = f"{name}, {'compiled' if compiled else 'eager'}"
        yield Group("gpu_steps", label, _later(steps.run, name, size, options, compiled=compiled))
        if not compiled:
            profiled = folder / f"profile-{name.lower()}"
            yield Group("gpu_kernels", name, _later(_profile, name, size, options, profiled))
    for name, bits in list(quantizers.groups())[: 1 if dry_run else None]:
        yield Group("gpu_quantizers", f"{name}, {bits} bits", _later(quantizers.run, name, bits, options))
    yield Group("bench_recurrent", "layers", _later(_recurrent, options))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing until the budget is spent; return the exit status, 75 if something is left."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument("--repeats", type=int, default=15, help="rounds of each group; default: 15")
    asked = parsed(parser, arguments)
    if not (asked.dry_run or torch.cuda.is_available()):
        return fail(NO_GPU)
    options = {"repeats": asked.repeats, "dry_run": asked.dry_run, "retry": asked.retry}
    return run(asked.results, asked.budget, started, **options)


def run(
    folder: Path, budget: float | None, started: float, *, repeats: int = 15, dry_run: bool = False, retry: bool = False
) -> int:
    """Measure what is missing; return the exit status."""
    warnings.filterwarnings("ignore", module=r"torch|brevitas|torchao")
    options = Options(device(), 2 if dry_run else repeats, quick=dry_run)
    size = steps.Size(2, 32) if dry_run else steps.Size()
    folder.mkdir(parents=True, exist_ok=True)
    where = environment(options.device)
    left, failed = 0, 0
    for group in groups(options, folder, size, dry_run=dry_run):
        before = _recorded(group, folder / FILE, where)
        if before and not (retry and "error" in before[-1]):
            failed += "error" in before[-1]
            continue
        if budget is not None and time.monotonic() - started > LAST_START * budget:
            left += 1
            continue
        found = _measured(group)
        failed += "error" in found[-1]
        described = {"bench": group.bench, "group": group.label, "run": _now()} | where
        for record in found:
            append(folder / FILE, record | described)
        _empty_cache()
    if failed:
        print(f"{failed} groups have failed; `--retry` measures them again")
    if left:
        print(f"{left} groups are left; the same command goes on")
    return SOME_FAILED if failed else SOME_LEFT if left else 0


def _recorded(group: Group, path: Path, where: Record) -> list[Record]:
    """Records of a group, from the same device and sources."""
    wanted = {"bench": group.bench, "group": group.label} | {
        name: where[name] for name in ("device", "torch", "sources")
    }
    return [record for record in read(path) if wanted.items() <= record.items()]


def _measured(group: Group) -> list[Record]:
    """Measure a group and show what came out; what went wrong is a record too."""
    try:
        found = group.measure()
    except Exception as error:
        traceback.print_exc()
        return [{"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}]
    _show(group, found)
    return found


def _profile(name: str, size: steps.Size, options: Options, folder: Path) -> list[Record]:
    return [kernels.run(name, size, options, folder)]


def _recurrent(options: Options) -> list[Record]:
    return [record for group in bench_recurrent.run(options) for record in group]


def _later(function: Callable[..., list[Record]], *arguments: Any, **options: Any) -> Callable[[], list[Record]]:
    return lambda: function(*arguments, **options)


def _show(group: Group, found: Sequence[Record]) -> None:
    print(f"== {group.bench}, {group.label}")
    if all("seconds" in record for record in found):
        for parameters in {str(record["parameters"]): None for record in found}:
            report([record for record in found if str(record["parameters"]) == parameters])


def _empty_cache() -> None:
    """Give memory back, so that one group does not take it from the next."""
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    raise SystemExit(main())
