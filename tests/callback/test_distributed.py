"""Two processes: every rank quantizes alike."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_balq import BalancedQuantization
from lightning_balq.nn import activation_quantizers, quantized_layers
from tests.callback.tiny import examples, quiet_trainer, tiny_model


class Keep(Callback):
    """Writes what each rank holds at the end of training."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        quantizers = activation_quantizers(pl_module)
        codes = [state.weights["weight"].codes(layer.weight) for _, layer, state in quantized_layers(pl_module)]
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "overhead" not in key}
        kept = {
            "ranges": [q.range for q in quantizers],
            "batches": [q.batches for q in quantizers],
            "codes": codes,
            "weights": [p.detach() for p in pl_module.parameters()],
            "metrics": {key: value for key, value in metrics.items() if key.startswith("balq/")},
            "losses": pl_module.losses,
        }
        torch.save(kept, self.root / f"rank{trainer.global_rank}.pt")


def test_ranks_hold_equal_codes_ranges_and_records(tmp_path: Path) -> None:
    model = tiny_model()
    callbacks = [BalancedQuantization(2, 2, verbose=0, record_every_n_steps=2), Keep(tmp_path)]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, strategy="ddp_spawn", devices=2, max_epochs=2)
    trainer.fit(model, DataLoader(examples(), batch_size=4))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["losses"] != second["losses"]  # the ranks saw different batches
    for key in ("ranges", "batches", "codes", "weights"):
        assert all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True)), key
    assert first["metrics"] == second["metrics"]
    # Six updates of one batch from each of two ranks.
    assert first["batches"][0] == 12 and len(first["losses"]) == 6
    # The trained weights come back to this process, as those of the float model.
    assert torch.equal(model.net[7].weight, first["weights"][8])
