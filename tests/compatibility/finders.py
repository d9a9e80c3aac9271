"""What Lightning's finder of a learning rate does to the training that follows it, with or without quantization."""

import functools

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.demos.boring_classes import BoringModel


class Boring(BoringModel):
    lr = 0.1


@functools.cache
def finder_takes_part() -> bool:
    """Whether its steps count as steps of the training, as in Lightning 2.4."""
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_train_batches=6, limit_val_batches=0,
        callbacks=[LearningRateFinder(num_training_steps=4, update_attr=False)],
    )  # fmt: skip
    trainer.fit(Boring())
    return trainer.global_step < 6
