"""Trained models and their checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_balq import BalancedQuantization, LSQQuantization
from tests.callback.tiny import Batches, TinyModel, quiet_trainer, tiny_model
from tests.cli import tiny_models


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trained model and its checkpoint; made once."""
    made: dict[str, Any] = {}

    def make(name: str) -> tuple[TinyModel, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            models = {"sized": lambda: tiny_models.Sized(width=5, classes=3), "late": tiny_models.Late}
            torch.manual_seed(0)
            model = models.get(name, tiny_model)()
            callback = (
                LSQQuantization(3, 3, activation_range="lsq", verbose=0)
                if name == "lsq"
                else BalancedQuantization(2, 4, verbose=0, blend_steps=100 if name == "blending" else 0)
            )
            trainer = quiet_trainer(root, callbacks=[callback])
            trainer.fit(model, Batches())
            trainer.save_checkpoint(root / "c.ckpt", weights_only=name == "weights only")
            made[name] = model.eval(), root / "c.ckpt"
        return made[name]

    return make
