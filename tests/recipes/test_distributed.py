"""Two processes: each reads its own columns, and both report one perplexity."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.testing import assert_close

from recipes.data import markov
from tests.recipes.tiny import quiet_trainer, short_text, tiny_model


class Keep(Callback):
    """Writes what each rank holds at the end of training."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.root / "last.ckpt")
        kept = {
            "weights": [parameter.detach() for parameter in pl_module.parameters()],
            "state": pl_module._train_state,
            "val_loss": trainer.callback_metrics["val_loss"],
            "rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        torch.save(kept, self.root / f"rank{trainer.global_rank}.pt")


def fit(root: Path, **options: Any) -> None:
    data = short_text()
    data.eval_batch_size = 4
    data.setup("fit")  # in this process, which knows how short the text is to be
    quiet_trainer(root, max_epochs=2, callbacks=[Keep(root)], **options).fit(tiny_model(), datamodule=data)


@pytest.mark.usefixtures("short_markov")
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Columns as long as each other: each process averages over its own tokens, whose numbers padding makes unequal.
    # Columns of the validation text are not, and its mean is over the tokens of both.
    monkeypatch.setitem(markov.SIZES, "train", 1208)
    fit(tmp_path)
    expected = torch.load(tmp_path / "rank0.pt", weights_only=True)
    fit(tmp_path, strategy="ddp_spawn", devices=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert first["val_loss"] == second["val_loss"] and first["rate"] == second["rate"]
    # gradients are summed in another order
    assert_close(first["weights"], expected["weights"], rtol=1e-4, atol=1e-5)
    assert float(first["val_loss"]) == pytest.approx(float(expected["val_loss"]), rel=1e-5)
    assert first["rate"] == expected["rate"]
    # a checkpoint holds the states of both, and each had its own
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["train_state"]
    for part, parts in zip(saved, zip(first["state"], second["state"], strict=True), strict=True):
        assert_close(part, torch.cat(parts, dim=1), rtol=0, atol=0)
    assert not torch.equal(first["state"][0], second["state"][0])


@pytest.mark.usefixtures("short_markov")
def test_a_restored_state_is_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.on_load_checkpoint({"train_state": (torch.arange(8.0).view(1, 4, 2), torch.arange(8.0, 16.0).view(1, 4, 2))})
    model._trainer = type("Ranks", (), {"world_size": 2, "global_rank": 1})()
    model.on_train_start()
    hidden, cell = model._train_state
    assert hidden.tolist() == [[[4.0, 5.0], [6.0, 7.0]]] and cell.tolist() == [[[12.0, 13.0], [14.0, 15.0]]]
