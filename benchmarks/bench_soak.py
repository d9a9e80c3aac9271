"""Memory and time of a long run: 10 000 training steps of a small convolutional and recurrent network.

Question: does a training step, or the memory of the process, grow with the number of steps?
Not measured: accuracy, large networks, a GPU.
Run: python -m benchmarks.bench_soak

One Trainer run with 2-bit weights and activations, recorded every 50 steps. After each of its steps a float twin of the
network takes one, so that what else the machine does slows both: times are seconds of the processor as ratios to the
twin's, the median of each block of steps. The memory of the process and the numbers of tensors, hooks and kept levels
are taken at the end of a block.
"""

import copy
import gc
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.memory import resident_bytes
from benchmarks.records import Record, append, results_path
from lightning_balq import BalancedQuantization
from lightning_balq.nn import quantized_layers
from recipes.environment import environment

STEPS = 10_000
BLOCK = 500
FIRST = 100
"""Steps that all later ones are compared with."""


class Strokes(LightningModule):
    """Reads an image of 8x8 row by row: a convolution, an LSTM over the rows, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = nn.ModuleDict({"first": nn.Conv2d(1, 8, 3, padding=1), "last": nn.Linear(32, 10)})
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.rnn = nn.LSTM(64, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of ten classes."""
        x = self.norm(self.conv(self.ends["first"](x).relu())).relu()
        states, _ = self.rnn(x.transpose(1, 2).flatten(2))
        scores: Tensor = self.ends["last"](states[:, -1])
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, which keeps two tensors for each parameter."""
        return torch.optim.Adam(self.parameters(), 1e-3)


class Watch(Callback):
    """Times each step and one of the float twin after it, and counts what is alive at the end of a block.

    Put it after other callbacks, so that a step holds what they do at its end; what they do at its start is little.
    """

    def __init__(self, twin: Strokes, block: int) -> None:
        self.twin, self.block = twin, block
        self.optimizer = twin.configure_optimizers()
        self.begin = 0.0
        self.ratios: list[float] = []
        self.counts: list[dict[str, int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begin = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        middle = time.process_time()
        self.optimizer.zero_grad()
        self.twin.training_step(batch, batch_idx).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.ratios.append((middle - self.begin) / (time.process_time() - middle))
        if trainer.global_step % self.block == 0:
            self.counts.append(alive(pl_module))


def alive(model: nn.Module) -> dict[str, int]:
    """Bytes of the process and objects that could pile up in it."""
    gc.collect()
    hooks = [value for module in model.modules() for key, value in vars(module).items() if key.endswith("_hooks")]
    return {
        "resident_bytes": resident_bytes() or 0,
        "tensors": sum(issubclass(type(value), Tensor) for value in gc.get_objects()),
        "hooks": sum(map(len, hooks)),
        "levels_kept": len(next(state.cache for _, _, state in quantized_layers(model))),
    }


def soak(steps: int, block: int, exclude: Sequence[str] = ()) -> Record:
    """Train for some steps, with what ``exclude`` names in float; return what each block of them took and left."""
    seed_everything(0, verbose=False)
    model = Strokes()
    watch = Watch(copy.deepcopy(model), block)
    batches = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(100)]
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        callbacks=[BalancedQuantization(2, 2, exclude=exclude, verbose=0), watch],
        logger=DummyLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do
    blocks = [watch.ratios[index : index + block] for index in range(0, steps, block)]
    return {
        "network": "convolution and LSTM, W2A2, batch 8",
        "steps": steps,
        "block": block,
        "first_ratio": round(median(watch.ratios[:FIRST]), 4),
        "ratios": [round(median(values), 4) for values in blocks],
    } | {key: [count[key] for count in watch.counts] for key in watch.counts[0]}


def slowest(record: Record) -> float:
    """Largest median of a block against that of the first hundred steps, both as ratios to the float twin."""
    return float(max(record["ratios"]) / record["first_ratio"])


def growth(record: Record) -> int:
    """Bytes that the process grew by from the end of the second block to its largest."""
    resident: list[int] = record["resident_bytes"]
    return max(resident[1:]) - resident[1]


def soak_table(records: Sequence[Record]) -> str:
    """The last record."""
    if not records:
        return "No records yet. Measure: `python -m benchmarks.bench_soak`."
    last = records[-1]
    rows = {
        "slowest block of steps against the first 100, in medians of the ratio to float": f"{slowest(last):.3f}",
        "a step against one of the float twin: first 100, last block": (
            f"{last['first_ratio']:.2f}, {last['ratios'][-1]:.2f}"
        ),
        "growth of the memory of the process after the second block, MiB": f"{growth(last) / 2**20:.1f}",
        "tensors alive, first and last block": f"{last['tensors'][0]}, {last['tensors'][-1]}",
        "hooks on modules, first and last block": f"{last['hooks'][0]}, {last['hooks'][-1]}",
        "weights whose levels are kept, first and last block": f"{last['levels_kept'][0]}, {last['levels_kept'][-1]}",
    }
    lines = [f"| {last['steps']} steps in blocks of {last['block']} | |", "| --- | ---: |"]
    lines += [f"| {what} | {value} |" for what, value in rows.items()]
    note = (
        f"{last['network']}; a step holds what the Trainer does, the twin's is a bare one; seconds are those of the "
        f"processor. Device: {last['device']}, threads: {last['threads']}; torch {last['torch']}, lightning "
        f"{last['lightning']}; commit {last['commit'][:7]}, sources {last['sources']}."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    """Run and append one record."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    where = environment(device)  # before: sources may change during a long run
    record = soak(STEPS, BLOCK) | where
    append(results_path("soak", device), record)
    print(soak_table([record]))


if __name__ == "__main__":
    main()
