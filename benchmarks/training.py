"""Training steps of a real Trainer, timed from the start of one to the start of the next."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

Stamp = float | torch.cuda.Event


class StepClock(Callback):
    """Notes the start of every step and the end of the last, without waiting for the device.

    Put it before other callbacks, so that a step holds all that they do.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stamps: list[Stamp] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._stamp()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._stamp()

    def _stamp(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.stamps.append(event)
        else:
            self.stamps.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds of each step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [_elapsed(begin, end) for begin, end in zip(self.stamps, self.stamps[1:], strict=False)]


class Classifier(LightningModule):
    """A network with a loss and plain gradient descent."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Small enough for weights to stay what they are: times should not depend on how well a network learns.
        return torch.optim.SGD(self.parameters(), 1e-5, momentum=0.9)


def step_seconds(
    network: nn.Module,
    callbacks: Sequence[Callback],
    batch: tuple[Tensor, Tensor],
    steps: int,
    warm_up: int,
    device: torch.device,
) -> float:
    """Train for some steps on the same batch; return the median seconds of those after the warm-up."""
    clock = StepClock(device)
    trainer = Trainer(
        max_epochs=1,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1 if device.index is None else [device.index],
        callbacks=[clock, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches: list[tuple[Tensor, Tensor]] = [batch] * (warm_up + steps)
    trainer.fit(Classifier(network), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do
    return median(clock.seconds()[warm_up:])


def _elapsed(begin: Stamp, end: Stamp) -> float:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return begin.elapsed_time(end) / 1000
    assert isinstance(begin, float) and isinstance(end, float)
    return end - begin
