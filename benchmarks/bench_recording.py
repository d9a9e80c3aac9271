"""Time of recording, as a share of training time, at the callback's default interval.

Question: does recording code statistics cost less than 1 % of training?  Not measured: quantization itself.
Run: python -m benchmarks.bench_recording

One Trainer run for each network, with default settings and a CSV logger. The time of every training step, and that of
every record in it, is taken in the same run; the share is (median record) / (50 x median step that does not record).
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.records import Record, append, results_path
from lightning_balq import BalancedQuantization
from recipes.digits import DigitsClassifier, batches, digits
from recipes.environment import environment

RECORDS = 12
"""Records timed for each network."""


class TimedBalancedQuantization(BalancedQuantization):
    """Adds up what recording takes: the whole of ``on_train_batch_end`` in steps that record."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.record_seconds: list[float] = []
        self.plain_seconds: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        records = self._is_due(self._recorded_step, trainer.global_step)
        begin = time.perf_counter()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        (self.record_seconds if records else self.plain_seconds).append(time.perf_counter() - begin)


class StepClock(Callback):
    """Time from one batch start to the next, without the steps that record."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.begin = 0.0
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if trainer.global_step > self.every and trainer.global_step % self.every > 1:
            self.seconds.append(now - self.begin)
        self.begin = now


class Convolutions(LightningModule):
    """Six 3x3 convolutions of 128 channels on 16x16 images: 0.7 million quantized weights, batch 16."""

    def __init__(self) -> None:
        super().__init__()
        body = [
            layer for _ in range(5) for layer in (nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU())
        ]
        ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
        self.net = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), *body, *ends)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(self.parameters(), 0.01)


def measure(name: str, model: LightningModule, loader: Any) -> Record:
    """Train ``model`` for as many steps as ``RECORDS`` records take."""
    callback = TimedBalancedQuantization(2, 2, verbose=0)
    clock = StepClock(callback.record_every_n_steps)
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            max_steps=callback.record_every_n_steps * RECORDS,
            max_epochs=-1,
            accelerator="cpu",
            callbacks=[clock, callback],
            logger=CSVLogger(root),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader)
    records = [seconds - statistics.median(callback.plain_seconds) for seconds in callback.record_seconds]
    step, low, high = (quantile(clock.seconds, q) for q in (0.5, 0.25, 0.75))
    return {
        "network": name,
        "every_n_steps": callback.record_every_n_steps,
        "step_seconds": [low, step, high],
        "record_seconds": [quantile(records, q) for q in (0.25, 0.5, 0.75)],
        "records": len(records),
        "share": quantile(records, 0.5) / (callback.record_every_n_steps * step),
    }


def recording_table(records: Sequence[Record]) -> str:
    """The last record of each network."""
    lines = ["| network | step, s | record, s | share of training time |", "| --- | ---: | ---: | ---: |"]
    for network, record in {record["network"]: record for record in records}.items():
        step, each = (" / ".join(f"{value:.4f}" for value in record[key]) for key in ("step_seconds", "record_seconds"))
        lines.append(f"| {network} | {step} | {each} | {record['share']:.2%} |")
    last = records[-1]
    note = (
        f"Quartiles (25 / 50 / 75 %); {last['records']} records each, one every {last['every_n_steps']} steps. Device: "
        f"{last['device']}, threads: {last['threads']}; torch {last['torch']}, lightning {last['lightning']}."
    )
    lines += ["", note]
    return "\n".join(lines)


def quantile(values: list[float], q: float) -> float:
    """Quantile of some seconds."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def main() -> None:
    """Measure and append one record for each network."""
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    device = torch.device("cpu")
    images = [(torch.randn(3, 16, 16), index % 10) for index in range(160)]
    cases = {
        "digits cnn_bn, 14 thousand weights, batch 64": (DigitsClassifier(), batches(digits()[0], 64, 0)),
        "6 convolutions, 0.7 million weights, batch 16": (Convolutions(), DataLoader(images, 16)),  # type: ignore[arg-type]
    }
    for name, (model, loader) in cases.items():
        record = measure(name, model, loader)
        print(f"{name}: {record['share']:.2%} of training time (median of {record['records']} records)")
        append(results_path("bench_recording", device), record | environment(device))


if __name__ == "__main__":
    main()
