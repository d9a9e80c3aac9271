"""Starting late or gradually: a function of ``trainer.global_step`` alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_balq import BalancedQuantization
from lightning_balq.nn import quantized_layers
from tests.callback.tiny import Batches, quiet_trainer, tiny_model


class Blends(Callback):
    """Keeps the blend that each batch, and each validation, was run with."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.training.append(next(state.schedule.blend for _, _, state in quantized_layers(pl_module)))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.validation.append(next(state.schedule.blend for _, _, state in quantized_layers(pl_module)))


def validation() -> DataLoader[Any]:
    """The same six batches in every validation, also after a sanity check that stopped early."""
    return DataLoader(Batches().batches, batch_size=None)


def fit(root: Path, blends: Blends, **options: Any) -> Any:
    trainer_options = options.pop("trainer", {})
    callbacks = [BalancedQuantization(2, 2, verbose=0, **options), blends]
    model = tiny_model()
    quiet_trainer(root, **{"callbacks": callbacks, "max_epochs": 2, **trainer_options}).fit(
        model, Batches(), validation()
    )
    return model


def test_float_until_start_step_is_bit_equal_to_float_training(tmp_path: Path) -> None:
    model = fit(tmp_path, Blends(), start_step=8)
    reference = tiny_model()
    quiet_trainer(tmp_path, max_epochs=2).fit(reference, Batches(), Batches())
    assert model.losses[:8] == reference.losses[:8] and model.losses[8] != reference.losses[8]


def test_blend_follows_the_global_step(tmp_path: Path) -> None:
    blends = Blends()
    fit(tmp_path, blends, start_step=3, blend_steps=4)
    assert blends.training == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    # Two sanity batches before the first step; then each validation with the blend of the last step before it.
    assert (
        blends.validation[:2] == [0, 0] and set(blends.validation[2:8]) == {0.5} and set(blends.validation[8:]) == {1}
    )


def test_blend_counts_optimizer_steps_not_batches(tmp_path: Path) -> None:
    blends = Blends()
    fit(tmp_path, blends, start_step=1, blend_steps=2, trainer={"accumulate_grad_batches": 2})
    assert blends.training == [0, 0, 0, 0, 0.5, 0.5, 1, 1, 1, 1, 1, 1]


def test_evaluating_a_checkpoint_uses_the_blend_it_was_saved_with(tmp_path: Path) -> None:
    model = fit(tmp_path, Blends(), start_step=4, blend_steps=16)
    model.trainer.save_checkpoint(tmp_path / "blended.ckpt")
    expected = quiet_trainer(tmp_path).test(model, Batches(), verbose=False)
    fresh = tiny_model(seed=1)
    callback = BalancedQuantization(2, 2, verbose=0, start_step=4, blend_steps=16)
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    assert trainer.test(fresh, Batches(), ckpt_path=tmp_path / "blended.ckpt", verbose=False) == expected
    assert next(state.schedule.blend for _, _, state in quantized_layers(fresh)) == 7 / 16


def test_evaluating_without_a_checkpoint_is_quantized(tmp_path: Path) -> None:
    model, reference = tiny_model(), tiny_model()
    late = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, verbose=0, start_step=100)])
    at_once = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, verbose=0)])
    assert late.test(model, Batches(), verbose=False) == at_once.test(reference, Batches(), verbose=False)


def test_ranges_are_observed_while_the_network_is_float(tmp_path: Path) -> None:
    model = fit(tmp_path, Blends(), start_step=1000)
    for _, _, state in quantized_layers(model):
        assert state.inputs["input"].range > 0 and state.inputs["input"].batches == 12


def test_quantized_from_the_first_step_by_default(tmp_path: Path) -> None:
    blends = Blends()
    fit(tmp_path, blends)
    assert set(blends.training) == {1.0}


@pytest.mark.parametrize("blend", [0.25, 0.75])
def test_blended_weight_lies_between(tmp_path: Path, blend: float) -> None:
    model = fit(tmp_path, Blends())
    layer, state = next((layer, state) for _, layer, state in quantized_layers(model))
    quantized = state.quantize_weight(layer, "weight")
    state.schedule.set_blend(blend)
    expected = layer.weight * (1 - torch.tensor(blend)) + quantized * torch.tensor(blend)
    assert_close(state.quantize_weight(layer, "weight"), expected, rtol=0, atol=0)
