"""Train in processes that are killed at random places, until training is done; the processes are forked from one.

Run: python -m tests.compatibility.kills FOLDER KILLS SEED
"""

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.callback.tiny import Batches, examples, quiet_trainer
from tests.compatibility.methods import METHODS, decaying, state

EPOCHS, EPOCH = 3, 20
STEPS = EPOCHS * EPOCH
PLACES = (
    "on_train_batch_start",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_save_checkpoint",
)
DUE = [step for step in range(STEPS) if step % EPOCH > 1]
"""Steps to be killed at. Where the last checkpoint is of the end of an epoch, Lightning 2.6 repeats that epoch when
training goes on for the second time, with or without callbacks, so that such steps are left out."""


class Kill(Callback):
    """Kills its own process the hard way, at a place that it is told."""

    def __init__(self, step: int, place: str) -> None:
        setattr(self, place, lambda trainer, *_: self._kill(trainer.global_step >= step))

    @staticmethod
    def _kill(due: bool) -> None:
        if due:
            os.kill(os.getpid(), signal.SIGKILL)


def train(method: str, folder: Path, seed: int, *callbacks: Callback) -> None:
    """Train from the newest checkpoint in ``folder``, and write the state at the end."""
    model, path = decaying(seed), folder / "last.ckpt"
    keeper = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    options: dict[str, Any] = {"start_step": 7, "blend_steps": 20, "record_every_n_steps": 3}
    trainer = quiet_trainer(
        folder, callbacks=[METHODS[method](**options), keeper, *callbacks], max_epochs=EPOCHS, enable_checkpointing=True
    )
    data = Batches(examples(4 * EPOCH))
    trainer.fit(model, data, Batches(), ckpt_path=path if path.exists() else None)
    torch.save(state(model) | {"step": trainer.global_step}, folder / "end.pt")


def main(folder: Path, kills: int, seed: int) -> None:
    """Train each method in as many processes as it takes, the first ``kills`` of which are killed."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    for method in METHODS:
        (folder / method).mkdir()
        for number, step in enumerate([*sorted(chance.sample(DUE, kills)), None]):
            place = chance.choice(PLACES)
            child = os.fork()
            if child == 0:
                train(method, folder / method, number, *([] if step is None else [Kill(step, place)]))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print(method, "killed" if os.WIFSIGNALED(status) else "done", step, place, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
