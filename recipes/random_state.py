"""Random numbers that go on where they stopped."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Save the state of torch's random generators in checkpoints, so that dropout after resuming is what it would be.

    In a training of several processes it does nothing: the state of one would be restored in all.
    """

    def __init__(self) -> None:
        self._restored: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state()
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restored, self._restored = self._restored, {}
        if trainer.world_size > 1 or not restored:
            return
        torch.set_rng_state(restored["cpu"].cpu())
        if "cuda" in restored and torch.cuda.is_available():
            torch.cuda.set_rng_state(restored["cuda"].cpu())
