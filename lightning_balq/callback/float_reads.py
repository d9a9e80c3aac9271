"""Say which quantized weights a model also reads as float: searched for in the first batch of a fit, and only there."""

import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_balq.nn.float_reads import FloatReads
from lightning_balq.nn.layers import quantized_layers
from lightning_balq.nn.schedule import Schedule
from lightning_balq.nn.weights import QUANTIZABLE, weight_sources


class FloatReadSearch(Callback):
    """Searches the graph of each backward pass of one batch."""

    _schedule: Schedule | None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Search while there is a graph to search in."""
        if self._schedule is not None and self._schedule.reads is not None:
            self._schedule.reads.search(loss)

    def _begin_search(self, trainer: Trainer) -> None:
        # Sharded weights are put together anew for every layer.
        if self._schedule is not None and not trainer.strategy.restore_checkpoint_after_setup:
            self._schedule.reads = FloatReads()

    def _stop_search(self) -> list[Any]:
        """Layers and names of weights that were found to be read as float."""
        if self._schedule is None or self._schedule.reads is None:
            return []
        reads, self._schedule.reads = self._schedule.reads, None
        return reads.found

    def _report_search(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = self._stop_search()
        if not found or not trainer.is_global_zero:
            return
        names = {id(layer): name for name, layer, _ in quantized_layers(pl_module)}
        elsewhere = {
            id(parameter)
            for module in pl_module.modules()
            if isinstance(module, tuple(QUANTIZABLE)) and id(module) not in names
            for parameter in module.parameters(recurse=False)
        }
        read = [
            f"{names[id(layer)]}.{name}".removeprefix(".")
            for layer, name in found
            # A layer that stays float by plan may share its weight with one that does not.
            if id(layer) in names and not any(id(source) in elsewhere for source in weight_sources(layer, name))
        ]
        if read:
            warnings.warn(
                f"Quantized weights are also read outside of the forward of their layer, as float: {', '.join(read)}. "
                "What is computed from them there, as `F.linear(x, self.embedding.weight)` is, is not quantized: call "
                "a layer that shares the weight (`decoder.weight = embedding.weight`) instead, or `exclude` the layer",
                stacklevel=2,
            )
