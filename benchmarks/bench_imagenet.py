"""Images per second and memory of training steps of the ImageNet recipes: 1000 classes, images of 224x224 pixels.

Question: what does a step of each network take, float and quantized?  Not measured: decoding (bench_input), accuracy.
Run: python -m benchmarks.bench_imagenet --path FOLDER

FOLDER is what the data module `ImageNet` reads, with 1000 classes. Every recipe runs in a process of its own, through
``recipes.train``; the first steps, which compile and allocate, are not counted. Memory is the peak of the process, so
that of Python and PyTorch is in it. Processes run one after the other, round by round: what the machine does beside
weighs on all alike, but ratios are less certain than those of bench_steps, which takes turns within one process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import recipes
from benchmarks.records import Record, append, results_path
from recipes.environment import environment

NAME = "bench_imagenet"
NETWORKS = ("alexnet", "googlenet", "resnet18", "resnet50")
WIDTHS = ("float", "w2a2", "w4a4")
SKIPPED_STEPS = 2
NOT_MEASURED = "No records yet. Measure: `python -m benchmarks.bench_imagenet --path FOLDER`."


class Clock(Callback):
    """Times the steps of a training, without the loading of their batches."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        outputs["loss"].item()  # which waits for a device
        self.seconds.append(time.perf_counter() - self._started)


def train(recipe: str, path: str, batch_size: int, steps: int) -> Record:
    """Train some steps of a recipe in this process."""
    from recipes.train import main as train_recipe  # its imports belong to the process that is measured

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    program = train_recipe(
        [
            "fit", f"--config={Path(recipes.__file__).parent / recipe}.yaml", f"--data.path={path}",
            f"--data.batch_size={batch_size}", "--data.workers=0", "--trainer.accelerator=cpu",
            f"--trainer.max_steps={SKIPPED_STEPS + steps}", "--trainer.limit_val_batches=0", "--trainer.logger=false",
            "--checkpoint.monitor=null", "--trainer.enable_checkpointing=true",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            f"--trainer.callbacks={__spec__.name}.Clock",
        ]
    )  # fmt: skip
    (clock,) = (callback for callback in program.trainer.callbacks if type(callback).__name__ == Clock.__name__)
    seconds = clock.seconds[SKIPPED_STEPS:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"step_seconds": seconds, "peak_bytes": peak}


def run(path: str, batch_size: int, steps: int, rounds: int, only: Sequence[str] = ()) -> Iterator[Record]:
    """Train steps of every recipe, each in a process of its own, in rounds; yield a record for each recipe."""
    names = [f"imagenet_{network}_{width}" for network in NETWORKS for width in WIDTHS]
    chosen = [name for name in names if not only or name in only]
    found: dict[str, list[Record]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name in chosen:
            found[name].append(_in_a_process(name, path, batch_size, steps))
    for name, parts in found.items():
        seconds = [second for part in parts for second in part["step_seconds"]]
        yield {
            "recipe": name, "batch_size": batch_size, "steps": len(seconds), "rounds": rounds,
            "images_per_second": batch_size / median(seconds), "step_seconds": seconds,
            "peak_bytes": max(part["peak_bytes"] for part in parts),
        }  # fmt: skip


def _in_a_process(recipe: str, path: str, batch_size: int, steps: int) -> Record:
    command = [sys.executable, "-m", __spec__.name, "--recipe", recipe, "--path", str(Path(path).resolve())]
    command += ["--batch-size", str(batch_size), "--steps", str(steps)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder,
            env=os.environ | threads | {"PYTHONPATH": paths},
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{recipe} failed:\n{done.stderr}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def imagenet_table(records: Sequence[Record]) -> str:
    """Table of all recipes, the last record of each."""
    if not records:
        return NOT_MEASURED
    last = {record["recipe"]: record for record in records}
    lines = ["| recipe | images per second | against float | peak memory, MiB |", "| --- | ---: | ---: | ---: |"]
    for name, record in last.items():
        reference = last.get(name.rpartition("_")[0] + "_float")
        ratio = "" if reference is None else f"{reference['images_per_second'] / record['images_per_second']:.2f}"
        memory = record["peak_bytes"] / 2**20
        lines.append(f"| `{name}` | {record['images_per_second']:.1f} | {ratio} | {memory:.0f} |")
    one = next(reversed(last.values()))
    lines.append(
        f"\n{one['batch_size']} images a step, median of {one['steps']} steps in {one['rounds']} processes; against "
        f"float: time of a step. Device: {one['device']}, threads: {one['threads']}; torch {one['torch']}, lightning "
        f"{one['lightning']}; commit {one['commit']}, sources {one['sources']}."
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all recipes, or be the process of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, metavar="FOLDER", help="images of 1000 classes")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="steps that count, of each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each recipe")
    parser.add_argument("--only", nargs="*", default=[], metavar="RECIPE", help="recipes to measure; default: all")
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: the records in benchmarks/results")
    options = parser.parse_args(arguments)
    if options.recipe is not None:
        print(json.dumps(train(options.recipe, options.path, options.batch_size, options.steps)))
        return
    device = torch.device("cpu")
    output = options.output or results_path(NAME, device)
    for record in run(options.path, options.batch_size, options.steps, options.rounds, options.only):
        append(output, record | environment(device))
        speed, memory = record["images_per_second"], record["peak_bytes"] / 2**20
        print(f"{record['recipe']:30} {speed:8.1f} images/s  {memory:6.0f} MiB")


if __name__ == "__main__":
    main()
