"""One run of the study of the Penn Treebank: train, validate after every epoch, test the best, survive interruption."""

import math
import os
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from packaging.version import Version

from benchmarks.penn_treebank_cells import Cell, Setting
from benchmarks.records import Record
from lightning_balq import BalancedQuantization, UniformQuantization
from lightning_balq.callback import QuantizationCallback
from lightning_balq.nn.monitor import CodeMonitor
from recipes.data.module import TextModule
from recipes.models.language import LanguageModel
from recipes.random_state import RandomState
from recipes.train import load_weights
from recipes.weight_clipping import WeightClipping

SECONDS_BETWEEN_CHECKPOINTS = 120.0
RESUMES_IN_AN_EPOCH = Version(version("lightning")) >= Version("2.5")
"""Whether Lightning finds its place again; before, it lost one batch and the validation of that epoch."""

INCLUDE = ("*", "type:Embedding")
"""Embedding and softmax layer are quantized too, as by He et al. 2016 and Xu et al. 2018."""


class BudgetSpent(Exception):
    """The run was saved and stops here."""


class Diverged(Exception):
    """The loss is not finite any more."""


class History(Callback):
    """Keeps the validation perplexity of every epoch and the time of every step, in checkpoints too.

    Args:
        described: what the run is; a checkpoint of another one is refused.
    """

    def __init__(self, described: Record) -> None:
        self.described = described
        self.perplexities: list[float] = []
        self.step_seconds: list[float] = []
        self._started: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._started is not None:
            self.step_seconds.append(now - self._started)  # start to start: a step holds what other callbacks do
        self._started = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not math.isfinite(outputs["loss"].item()):  # which waits for the device, as timing must
            raise Diverged

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.perplexities.append(float(trainer.callback_metrics["val_perplexity"]))

    @property
    def is_best(self) -> bool:
        """Whether the last validation is better than all before it."""
        *before, last = self._comparable()
        return last < min(before, default=math.inf)

    def record(self) -> Record:
        """What a record says about the course of training."""
        comparable = self._comparable()
        best = min(comparable, default=math.inf)
        return {
            "validation_perplexity": [finite(value) for value in self.perplexities],
            "best_epoch": comparable.index(best) + 1 if best < math.inf else None,
            "step_seconds": median(self.step_seconds) if self.step_seconds else None,
            "measured_steps": len(self.step_seconds),
        }

    def _comparable(self) -> list[float]:
        return [math.inf if math.isnan(value) else value for value in self.perplexities]

    def state_dict(self) -> dict[str, Any]:
        return {
            "described": self.described, "perplexities": list(self.perplexities), "seconds": list(self.step_seconds),
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["described"] != self.described:
            raise ValueError(
                f"the unfinished run must be one of {self.described}, got {state_dict['described']}: name another "
                "`--work` folder, or delete the old one"
            )
        self.perplexities = list(state_dict["perplexities"])
        self.step_seconds = list(state_dict["seconds"])


class Keeper(Checkpoint):
    """Saves the best network, and the state to go on from: after every epoch, and with a deadline every few minutes.

    Args:
        run: says where to save, and when to stop.
        history: says which network is the best.
    """

    def __init__(self, run: "Run", history: History) -> None:
        self.run = run
        self.history = history
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.run.deadline is None or not RESUMES_IN_AN_EPOCH:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # its validation comes first
        if time.monotonic() > min(self.run.deadline, self._saved + SECONDS_BETWEEN_CHECKPOINTS):
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.history.is_best:
            self._save(trainer, self.run.best, weights_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        self._save(trainer, self.run.last)
        if self.run.deadline is not None and time.monotonic() > self.run.deadline:
            raise BudgetSpent

    def _save(self, trainer: Trainer, path: Path, *, weights_only: bool = False) -> None:
        """Write a file that is whole or not there, whenever the process is killed."""
        unfinished = path.with_suffix(".unfinished")
        trainer.save_checkpoint(unfinished, weights_only)
        os.replace(unfinished, path)
        self._saved = time.monotonic()


@dataclass
class Run:
    """Trains and tests the network of one cell, or goes on where an earlier call stopped.

    Args:
        cell: which network, how it is quantized, and from which seed.
        setting: how to train.
        data: the text.
        folder: where the networks of this run are kept.
        device: where to train.
        deadline: when to stop, as `time.monotonic()` counts, or `None`.
    """

    cell: Cell
    setting: Setting
    data: TextModule
    folder: Path
    device: torch.device
    deadline: float | None = None

    @property
    def best(self) -> Path:
        """The network with the lowest validation perplexity."""
        return self.folder / "best.ckpt"

    @property
    def last(self) -> Path:
        """The state to go on from."""
        return self.folder / "last.ckpt"

    def finish(self, start: Path | None = None) -> Record:
        """Train to the end, test the best network, and return what came out.

        Args:
            start: checkpoint with the initial weights, or `None`.

        Raises:
            BudgetSpent: if the deadline has passed; at least one step was trained and saved.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data.setup("fit")
        seed_everything(self.cell.seed, verbose=False)
        model, quantization = self.model(), self.quantization()
        resumes = self.last.exists()
        if start is not None and not resumes:
            load_weights(model, start)
        history = History(self.cell.options() | self.setting.numbers())
        trainer = self.trainer([history, Keeper(self, history), RandomState()], quantization)
        diverged = False
        try:
            trainer.fit(model, datamodule=self.data, ckpt_path=self.last if resumes else None)
        except Diverged:
            diverged = True
        return history.record() | codes_record(model, quantization, diverged) | self.test()

    def test(self) -> Record:
        """Perplexity of the best network on the test text; `None` if no validation was finite."""
        if not self.best.exists():
            return {"test_perplexity": None}
        trainer = self.trainer([], self.quantization())
        tested = trainer.test(self.model(), datamodule=self.data, ckpt_path=self.best, verbose=False)
        return {"test_perplexity": finite(tested[0]["test_perplexity"])}

    def model(self) -> LanguageModel:
        """The network before training."""
        return LanguageModel(
            self.cell.network, self.data.vocabulary_size, self.setting.units, dropout=self.setting.dropout,
            optimizer=self.setting.optimizer, learning_rate=self.setting.learning_rate, decay=self.setting.decay,
            milestones=self.setting.milestones,
        )  # fmt: skip

    def quantization(self) -> QuantizationCallback | None:
        """The callback; `None` for a float network."""
        options = self.cell.options()
        common: dict[str, Any] = {
            "weight_bits": options["weight_bits"], "activation_bits": options["activation_bits"],
            "scale": options["scale"], "granularity": self.setting.granularity,
            "activation_range": self.setting.activation_range, "include": INCLUDE, "quantize_first_last": True,
            "verbose": 0, "blend_steps": round(self.setting.blend_epochs * len(self.data.train_dataloader())),
        }  # fmt: skip
        if options["quantizer"] == "balanced":
            return BalancedQuantization(**common, center=options["center"])
        return UniformQuantization(**common) if options["quantizer"] == "uniform" else None

    def trainer(self, callbacks: list[Callback], quantization: QuantizationCallback | None) -> Trainer:
        """The Trainer, which keeps nothing itself."""
        added = [] if quantization is None else [WeightClipping(self.setting.weight_clip), quantization]
        return Trainer(
            accelerator="cpu" if self.device.type == "cpu" else "gpu", devices=1, max_epochs=self.setting.epochs,
            gradient_clip_val=self.setting.gradient_clip, callbacks=[*callbacks, *added],
            logger=False, enable_checkpointing=bool(callbacks), enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0,
        )  # fmt: skip


def codes_record(model: LanguageModel, quantization: QuantizationCallback | None, diverged: bool) -> Record:
    """How the trained weights use their codes, and what quantizing costs."""
    overheads = [] if quantization is None else quantization.state_dict()["overheads"]
    has_codes = quantization is not None and not diverged
    return {
        "diverged": diverged,
        "effective_bitwidth": CodeMonitor().record(model)[1].effective_bitwidth if has_codes else None,
        "overhead": median(overheads) if overheads else None,
    }


def finite(value: float) -> float | None:
    """The value as JSON can hold it."""
    return value if math.isfinite(value) else None
