"""What is recorded while a model trains: codes of its weights, and the share of a step spent quantizing."""

import time
from collections import deque
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_balq.callback.outlets import Outlets
from lightning_balq.nn.monitor import CodeMonitor, CodeStatistics
from lightning_balq.nn.report import record_table
from lightning_balq.nn.schedule import Schedule
from lightning_balq.nn.timing import QuantizationTimer

OVERHEADS_KEPT = 1000
"""Records whose overheads are remembered: a state does not grow with the length of training."""


class Recorder:
    """Records one training after the other.

    Attributes:
        overheads: share of a step spent quantizing, of each record where it was measured; it outlives :meth:`forget`.
        outlets: where records and tables go.
        step: optimizer steps at the last record.
    """

    def __init__(self) -> None:
        self.overheads: deque[float] = deque(maxlen=OVERHEADS_KEPT)
        self.forget()

    def forget(self) -> None:
        """Let go of the model whose codes were recorded."""
        self.outlets = Outlets()
        self.step = 0
        self._monitor = CodeMonitor()
        self._codes: dict[str, CodeStatistics] = {}
        self._started = 0.0

    def start_clock(self, schedule: Schedule, device: torch.device) -> None:
        """Begin to measure the overhead of a step."""
        _synchronize(device)
        schedule.timer = QuantizationTimer()
        self._started = time.perf_counter()

    def stop_clock(self, schedule: Schedule, device: torch.device) -> float | None:
        """Share of the step spent quantizing, if the clock ran and saw any."""
        if schedule.timer is None:
            return None
        timer, schedule.timer = schedule.timer, None
        spent = timer.seconds()
        _synchronize(device)
        return spent / (time.perf_counter() - self._started) if spent else None

    def record(self, trainer: Trainer, pl_module: LightningModule, overhead: float | None) -> dict[str, float]:
        """Record codes and overhead to all loggers and ``callback_metrics``; return the metrics."""
        self._codes, overall = self._monitor.record(pl_module)
        metrics = {f"balq/{name}/{key}": v for name, layer in self._codes.items() for key, v in asdict(layer).items()}
        metrics |= {f"balq/{key}": value for key, value in asdict(overall).items()}
        if overhead is not None:
            self.overheads.append(overhead)
            metrics["balq/overhead"] = overhead
        self.outlets.record(trainer.loggers, metrics, trainer.global_step)
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})
        return metrics

    def show(self, title: str) -> None:
        """Print the last record, if there is one."""
        if not self._codes:
            return
        rows = [
            (
                name,
                f"{layer.effective_bitwidth:.3f}",
                f"{layer.bin_utilization:.1%}",
                f"{layer.imbalance:.2f}",
                f"{layer.code_flip_rate:.2%}",
            )
            for name, layer in self._codes.items()
        ]
        title = f"{title}: codes at step {self.step}"
        if self.overheads:
            title += f"; {median(self.overheads):.1%} of a step spent quantizing (median of {len(self.overheads)})"
        columns: list[Any] = ["layer", "effective bits", "bins used", "imbalance", "codes flipped"]
        self.outlets.show(record_table(title, columns, rows))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
