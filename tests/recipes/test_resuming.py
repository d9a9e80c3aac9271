"""A run that is interrupted and resumed equals one that is not, in the middle of a stream too."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import Version
from torch.testing import assert_close

from recipes.random_state import RandomState
from tests.recipes.tiny import Losses, quiet_trainer, short_text, tiny_model

pytestmark = pytest.mark.usefixtures("short_markov")

BATCHES = 16  # of an epoch
in_an_epoch = pytest.mark.skipif(Version(lightning.__version__) < Version("2.5"), reason="loses the place in an epoch")
OPTIONS = {"dropout": 0.5, "decay": 2.0, "learning_rate": 5.0}


def fit(root, model, losses, **options):
    # a validation in the middle of an epoch, so that its state is not mistaken for that of training
    options = {"max_epochs": 3, "callbacks": [], "val_check_interval": 4} | options
    path = options.pop("ckpt_path", None)
    callbacks = [losses, RandomState(), *options.pop("callbacks")]
    trainer = quiet_trainer(root, enable_checkpointing=True, callbacks=callbacks, **options)
    trainer.fit(model, datamodule=short_text(), ckpt_path=path)
    return trainer


@pytest.mark.parametrize(
    ("step", "cell"),
    [
        pytest.param(5, "lstm", marks=in_an_epoch),
        pytest.param(BATCHES + 3, "lstm", marks=in_an_epoch),
        pytest.param(BATCHES + 3, "gru", marks=in_an_epoch),
        (BATCHES, "lstm"),
    ],
)
def test_resumed_run_equals_uninterrupted_run(tmp_path, cell, step):
    whole, first, second = Losses(), Losses(), Losses()
    expected = tiny_model(cell=cell, **OPTIONS)
    ended = fit(tmp_path, expected, whole)
    # at the end of an epoch, its last validation comes before the checkpoint
    often = {"every_n_epochs": 1, "save_on_train_epoch_end": True} if step == BATCHES else {"every_n_train_steps": step}
    keeper = ModelCheckpoint(tmp_path, save_top_k=-1, **often)
    fit(tmp_path, tiny_model(cell=cell, **OPTIONS), first, callbacks=[keeper], max_epochs=-1, max_steps=step)
    resumed = tiny_model(seed=1, cell=cell, **OPTIONS)  # ignoring the checkpoint would show
    again = fit(tmp_path, resumed, second, ckpt_path=keeper.best_model_path)
    assert first.values + second.values == whole.values
    assert len(whole.values) == 3 * BATCHES
    assert_close(resumed.state_dict(), expected.state_dict(), rtol=0, atol=0)
    rates = [trainer.optimizers[0].param_groups[0]["lr"] for trainer in (ended, again)]
    assert rates[0] == rates[1] < 5.0


def test_the_checkpoint_of_the_best_epoch_has_followed_its_own_validation(tmp_path):
    """Lightning's schedules that watch a metric are behind by one step in a checkpoint."""
    keeper = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    fit(tmp_path, tiny_model(**OPTIONS), Losses(), callbacks=[keeper], max_epochs=1, val_check_interval=1.0)
    saved = torch.load(keeper.best_model_path, weights_only=True)["lr_schedulers"][0]
    assert saved["best"] == pytest.approx(float(keeper.best_model_score))


@in_an_epoch
@pytest.mark.parametrize("missing", ["train_state", "RandomState"])
def test_resuming_without_a_part_of_the_state_would_differ(tmp_path, missing):
    """The test above can fail: dropping our part of a checkpoint changes the losses that follow."""
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1)
    fit(tmp_path, tiny_model(**OPTIONS), Losses(), callbacks=[keeper], max_epochs=-1, max_steps=5)
    checkpoint = torch.load(keeper.best_model_path, weights_only=True)
    del (checkpoint if missing in checkpoint else checkpoint["callbacks"])[missing]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    runs = [Losses(), Losses()]
    for path, losses in zip((keeper.best_model_path, tmp_path / "without.ckpt"), runs, strict=True):
        fit(tmp_path, tiny_model(**OPTIONS), losses, ckpt_path=path)
    assert runs[0].values != runs[1].values


def test_a_checkpoint_loads_strictly_and_without_a_trainer(tmp_path):
    model = tiny_model(cell="gru")
    fit(tmp_path, model, Losses(), max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "last.ckpt")
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert set(loaded.state_dict()) == {name for name, _ in model.named_parameters()}
