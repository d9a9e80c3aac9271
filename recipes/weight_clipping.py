"""Keep weights in an interval around zero."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class WeightClipping(Callback):
    """Clip all weights to ``[-bound, bound]`` after each optimizer step (Xu et al. 2018); biases are left alone.

    Outliers make the levels of the other weights coarse, because all of them share a scale.

    Args:
        bound: largest magnitude of a weight.

    Raises:
        ValueError: if ``bound`` is not positive.
    """

    def __init__(self, bound: float = 1.0) -> None:
        if not bound > 0:
            raise ValueError(f"`bound` must be more than 0, got {bound}")
        self.bound = bound

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for parameter in pl_module.parameters():
            if parameter.dim() > 1:
                parameter.clamp_(-self.bound, self.bound)
