"""When a weight that was quantized once is used again: hooks of evaluation, and what training asks for."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.layers import quantized_layers


class LevelReuse(Callback):
    """Opens the cache of quantized weights for the batches of an evaluation, and closes it after each."""

    reuse_quantized: bool
    _cache: LevelCache | None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Quantize each weight once for all batches; the weights may be averages, put in place just before."""
        self._reuse_levels(trainer, pl_module, forget=batch_idx == 0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop reusing until the next batch."""
        self._stop_reusing()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was quantized: averages may give way to the weights in training."""
        self._forget_levels()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Quantize each weight once for all batches."""
        self._reuse_levels(trainer, pl_module, forget=batch_idx == 0)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop reusing until the next batch."""
        self._stop_reusing()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was quantized."""
        self._forget_levels()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Quantize each weight once for all batches."""
        self._reuse_levels(trainer, pl_module, forget=batch_idx == 0)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop reusing until the next batch."""
        self._stop_reusing()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was quantized."""
        self._forget_levels()

    def _reuse_levels(self, trainer: Trainer, pl_module: LightningModule, *, forget: bool) -> None:
        # Sharded weights come and go at addresses of their own.
        if not self.reuse_quantized or trainer.strategy.restore_checkpoint_after_setup:
            return
        if self._cache is None:
            self._cache = next((state.cache for _, _, state in quantized_layers(pl_module)), None)
        if self._cache is not None:
            self._cache.open(forget=forget)

    def _stop_reusing(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _forget_levels(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache.forget()
