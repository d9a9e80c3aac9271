"""What is measured while a cell is trained."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_balq.callback import QuantizationCallback
from lightning_balq.nn.plan import Plan


class History(Callback):
    """Keeps the metrics of every epoch, the seconds trained, and what is quantized; in checkpoints too.

    It must come before the quantizing callback, so that it sees the float model. A training whose loss is not finite
    ends with that epoch.

    Attributes:
        curve: metrics by name, one mapping for each epoch; ``None`` where one is not finite.
        seconds: of all epochs, their validations included.
        resumed: whether the training went on from a checkpoint.
        float_bytes: bytes of all parameters in float32.
        plan: what is quantized; ``None`` for a float network.
    """

    def __init__(self) -> None:
        self.curve: list[dict[str, float | int | None]] = []
        self.seconds = 0.0
        self.resumed = False
        self.float_bytes = 0
        self.plan: Plan | None = None
        self._finite: Tensor = torch.tensor(True)
        self._started = 0.0

    @property
    def diverged(self) -> bool:
        """Whether a training loss was not finite."""
        return not bool(self._finite)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.float_bytes = sum(parameter.nbytes for parameter in pl_module.parameters())
        callbacks: list[Callback] = trainer.callbacks
        for callback in callbacks:
            if isinstance(callback, QuantizationCallback):
                self.plan = callback.plan(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:  # kept on the device, which is waited for once in an epoch
            self._finite = self._finite.to(loss.device) & torch.isfinite(loss.detach()).all()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {key: value for key, value in trainer.callback_metrics.items() if "/" not in key}
        metrics = {key: float(value) for key, value in shown.items() if not key.endswith("_step")}
        self.curve.append({"epoch": trainer.current_epoch} | {key: rounded(value) for key, value in metrics.items()})
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now
        if self.diverged:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"curve": list(self.curve), "seconds": self.seconds, "finite": not self.diverged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve, self.seconds = list(state_dict["curve"]), state_dict["seconds"]
        self._finite, self.resumed = torch.tensor(state_dict["finite"]), True


def rounded(value: float) -> float | None:
    """The value to seven digits, which float32 has, as JSON can hold it."""
    return finite(float(f"{value:.7g}"))


def finite(value: float) -> float | None:
    """The value as JSON can hold it."""
    return value if math.isfinite(value) else None
