"""Recurrent models in a Trainer: records, two processes, resuming, and what the callback says about its arguments."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_balq import BalancedQuantization, UniformQuantizer, unquantize_
from lightning_balq.nn import activation_quantizers, quantized_layers
from tests.callback.tiny import Batches, quiet_trainer
from tests.helpers import assert_equal


class Tagger(LightningModule):
    """Two recurrent layers and a cell over random sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 6, batch_first=True)
        self.cell = nn.LSTMCell(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(self.lstm(x)[0])
        state = None
        for step in states.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0].squeeze(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0].squeeze(1)), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def tagger() -> Tagger:
    seed_everything(0, verbose=False)
    return Tagger()


def callback(**options: Any) -> BalancedQuantization:
    return BalancedQuantization(2, 2, scale="mean", verbose=0, **options)


def test_kernel_and_recurrent_weights_are_recorded_apart(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[callback(record_every_n_steps=2)])
    trainer.fit(tagger(), Batches())
    recorded = {key for key in trainer.callback_metrics if key.endswith("/effective_bitwidth")}
    parts = {
        f"balq/{layer}.{part}/effective_bitwidth"
        for layer in ("lstm", "gru", "cell")
        for part in ("kernel", "recurrent")
    }
    assert recorded == {"balq/effective_bitwidth", *parts}
    assert float(trainer.callback_metrics["balq/lstm.recurrent/effective_bitwidth"]) > 1.5


@pytest.mark.parametrize("stop", [3, 6], ids=["in mid-epoch", "after an epoch"])
def test_resumed_fit_equals_uninterrupted_fit(tmp_path: Path, stop: int) -> None:
    straight = tagger()
    quiet_trainer(tmp_path, callbacks=[callback()], max_epochs=2).fit(straight, Batches())
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=stop, save_top_k=-1)
    trainer = quiet_trainer(tmp_path, callbacks=[callback(), keeper], max_steps=stop, enable_checkpointing=True)
    trainer.fit(tagger(), Batches())
    torch.manual_seed(7)
    resumed = Tagger()
    quiet_trainer(tmp_path, callbacks=[callback()], max_epochs=2).fit(
        resumed, Batches(), ckpt_path=keeper.best_model_path
    )
    assert_equal(resumed.state_dict(), straight.state_dict())
    ranges = [[q.range for q in activation_quantizers(model)] for model in (resumed, straight)]
    assert_equal(*ranges)
    # Of the LSTM the input and two layers, of the others the input and one: none is left at its first value.
    assert len(ranges[0]) == 7 and all(float(value) > 0 for value in ranges[0])


class Keep(BalancedQuantization):
    """Writes what each rank holds at the end of training."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        kept = [q.range for q in activation_quantizers(pl_module)], dict(pl_module.state_dict())
        torch.save(kept, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def test_two_processes_hold_equal_ranges_and_weights(tmp_path: Path) -> None:
    kept = Keep(2, 2, scale="mean", verbose=0)
    trainer = quiet_trainer(tmp_path, callbacks=[kept], strategy="ddp_spawn", devices=2, max_epochs=2)
    data = [(x[0], y) for x, y in zip(*map(torch.cat, zip(*Batches().batches, strict=True)), strict=True)]
    trainer.fit(tagger(), torch.utils.data.DataLoader(data, batch_size=2))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first, second)
    assert not torch.equal(first[1]["gru.weight_hh_l0"], tagger().gru.weight_hh_l0)


def test_float_checkpoint_goes_into_a_quantized_run_and_back(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.fit(tagger(), Batches())
    trainer.save_checkpoint(tmp_path / "float.ckpt")
    model = tagger()
    trainer = quiet_trainer(tmp_path, callbacks=[callback(blend_steps=2)], max_epochs=2)
    trainer.fit(model, Batches(), ckpt_path=tmp_path / "float.ckpt")
    trainer.save_checkpoint(tmp_path / "quantized.ckpt")
    again = Tagger.load_from_checkpoint(tmp_path / "quantized.ckpt")
    unquantize_(model)
    assert_equal(again.state_dict(), model.state_dict())
    assert_equal(again(torch.ones(1, 8, 8)), model(torch.ones(1, 8, 8)))


def test_levels_are_computed_once_for_all_batches_of_a_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counted = tagger(), []
    quantizer = callback()
    trainer = quiet_trainer(tmp_path, callbacks=[quantizer], limit_val_batches=3)
    compute = type(quantizer.weight_quantizer()).levels
    monkeypatch.setattr(
        type(quantizer.weight_quantizer()), "levels", lambda self, w: counted.append(w.shape) or compute(self, w)
    )
    trainer.validate(model, Batches(), verbose=False)
    weights = [p for name, p in model.named_parameters() if "weight" in name and not name.startswith("head")]
    assert len(counted) == len(weights) == 12


def test_recurrent_quantizer_is_an_argument_and_a_change_of_it_is_noticed(tmp_path: Path) -> None:
    model = tagger()
    trainer = quiet_trainer(tmp_path, callbacks=[callback(recurrent=UniformQuantizer(4, scale="mean"))])
    trainer.fit(model, Batches())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for _, layer, state in quantized_layers(model):
        chosen = {name: type(quantizer).__name__ for name, quantizer in state.weights.items()}
        assert set(chosen.values()) == {"BalancedQuantizer", "UniformQuantizer"}, layer
        assert all((kind == "UniformQuantizer") == ("_hh" in name) for name, kind in chosen.items())
    other = quiet_trainer(tmp_path, callbacks=[callback()], max_epochs=2)
    with pytest.warns(UserWarning, match="other arguments.*recurrent: .UniformQuantizer"):
        other.fit(tagger(), Batches(), ckpt_path=tmp_path / "last.ckpt")


def test_averaging_callback_copies_a_recurrent_model(tmp_path: Path) -> None:
    model = tagger()
    quiet_trainer(tmp_path, callbacks=[callback()]).fit(model, Batches())
    copied = copy.deepcopy(model)
    x = torch.ones(2, 8, 8)
    assert_equal(copied.eval()(x), model.eval()(x))
