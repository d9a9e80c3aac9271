"""Checkpoints are those of the float model, resume exactly, and carry what a float model has no place for."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from lightning_balq import BalancedQuantization, UniformQuantization
from lightning_balq.nn import activation_quantizers, quantized_layers
from tests.callback.tiny import Batches, TinyModel, quiet_trainer, tiny_model


def callback(**kwargs: Any) -> BalancedQuantization:
    return BalancedQuantization(2, 2, verbose=0, **kwargs)


def fit(root: Path, model: TinyModel, **kwargs: Any) -> Any:
    trainer = quiet_trainer(root, **{"callbacks": [callback()], "max_epochs": 3, **kwargs})
    trainer.fit(model, Batches(), Batches(), ckpt_path=kwargs.pop("ckpt_path", None))
    return trainer


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_checkpoint_loads_strictly_as_float_where_we_were_never_imported(tmp_path: Path) -> None:
    model = tiny_model()
    fit(tmp_path, model).save_checkpoint(tmp_path / "quantized.ckpt")
    run_python(
        f"""
import sys, torch
checkpoint = torch.load({str(tmp_path / "quantized.ckpt")!r}, weights_only=True)
from tests.callback.tiny import TinyModel
model = TinyModel.load_from_checkpoint({str(tmp_path / "quantized.ckpt")!r}, strict=True)
assert all(torch.equal(model.state_dict()[key], value) for key, value in checkpoint["state_dict"].items())
assert type(model.net[3]) is torch.nn.Conv2d
assert not [name for name in sys.modules if name.startswith("lightning_balq")]
"""
    )


def test_float_checkpoint_loads_strictly_into_the_quantized_model(tmp_path: Path) -> None:
    model = tiny_model(seed=1)
    quiet_trainer(tmp_path).fit(model, Batches())
    model.trainer.save_checkpoint(tmp_path / "float.ckpt")
    quantized = tiny_model(seed=2)
    quiet_trainer(tmp_path, callbacks=[callback()]).test(quantized, Batches(), tmp_path / "float.ckpt", verbose=False)
    assert_close(quantized.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("weights_only", [False, True], ids=["full", "save_weights_only"])
def test_checkpoint_tests_to_the_same_metrics_in_a_fresh_process(tmp_path: Path, weights_only: bool) -> None:
    model = tiny_model()
    trainer = fit(tmp_path, model)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=weights_only)
    expected = trainer.test(model, Batches(), verbose=False)[0]["test_loss"]
    printed = run_python(
        f"""
from pathlib import Path
from lightning_balq import BalancedQuantization
from tests.callback.tiny import Batches, quiet_trainer, tiny_model
trainer = quiet_trainer(Path({str(tmp_path)!r}), callbacks=[BalancedQuantization(2, 2, verbose=0)])
result = trainer.test(tiny_model(seed=5), Batches(), ckpt_path={str(tmp_path / "last.ckpt")!r}, verbose=False)
print(repr(result[0]["test_loss"]))
"""
    )
    assert float(printed.split()[-1]) == expected


def test_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    fit(tmp_path, tiny_model()).save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["lightning_balq"]["inputs"]) == {"net.3", "net.7"}
    assert "BalancedQuantization" in checkpoint["callbacks"]


def stop_and_save(root: Path, model: TinyModel, step: int, **options: Any) -> str:
    """Train to ``step``, in the middle of an epoch or at its end, and return the path of the checkpoint made there."""
    keeper = ModelCheckpoint(root, every_n_train_steps=step, save_top_k=-1)
    callbacks = [callback(**options), keeper]
    fit(root, model, callbacks=callbacks, max_epochs=-1, max_steps=step, enable_checkpointing=True)
    return keeper.best_model_path


@pytest.mark.parametrize("options", [{}, {"start_step": 5, "blend_steps": 8}], ids=["at once", "blended"])
@pytest.mark.parametrize("step", [6, 9, 14], ids="step {}".format)
def test_resumed_fit_equals_uninterrupted_fit(tmp_path: Path, step: int, options: dict[str, int]) -> None:
    whole, first = tiny_model(), tiny_model()
    fit(tmp_path, whole, callbacks=[callback(**options)])
    stopped = stop_and_save(tmp_path, first, step, **options)
    resumed = tiny_model(seed=1)  # ignoring the checkpoint would show
    quiet_trainer(tmp_path, callbacks=[callback(**options)], max_epochs=3).fit(
        resumed, Batches(), Batches(), ckpt_path=stopped
    )
    assert first.losses + resumed.losses == whole.losses
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    for ours, theirs in zip(activation_quantizers(resumed), activation_quantizers(whole), strict=True):
        assert torch.equal(ours.range, theirs.range) and torch.equal(ours.batches, theirs.batches)


def test_resuming_without_ranges_would_differ(tmp_path: Path) -> None:
    """The test above can fail: dropping our part of the checkpoint changes the losses that follow."""
    stopped = stop_and_save(tmp_path, tiny_model(), 9)
    checkpoint = torch.load(stopped, weights_only=True)
    del checkpoint["lightning_balq"]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    losses = []
    for path in (stopped, tmp_path / "without.ckpt"):
        resumed = tiny_model(seed=1)
        quiet_trainer(tmp_path, callbacks=[callback()], max_epochs=3).fit(resumed, Batches(), ckpt_path=path)
        losses.append(resumed.losses)
    assert losses[0] != losses[1]


def test_model_checkpoint_monitors_what_we_record(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, monitor="balq/effective_bitwidth", mode="max", every_n_train_steps=2)
    fit(tmp_path, tiny_model(), callbacks=[callback(record_every_n_steps=2), keeper], enable_checkpointing=True)
    assert Path(keeper.best_model_path).exists() and 1.0 < float(keeper.best_model_score) <= 2.0


def test_changed_arguments_warn_and_say_which(tmp_path: Path) -> None:
    fit(tmp_path, tiny_model()).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"with other arguments.*weight_bits: 2 -> 4"):
        quiet_trainer(tmp_path, callbacks=[BalancedQuantization(4, 2, verbose=0)], max_epochs=4).fit(
            tiny_model(), Batches(), ckpt_path=tmp_path / "last.ckpt"
        )


def test_resuming_without_the_callback_warns_and_trains_in_float(tmp_path: Path) -> None:
    fit(tmp_path, tiny_model()).save_checkpoint(tmp_path / "last.ckpt")
    model = tiny_model()
    with pytest.warns(UserWarning, match="BalancedQuantization"):
        quiet_trainer(tmp_path, max_epochs=4).fit(model, Batches(), ckpt_path=tmp_path / "last.ckpt")
    assert list(quantized_layers(model)) == [] and len(model.losses) == 6


@pytest.mark.parametrize("part", ["callback", "model"])
def test_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, part: str) -> None:
    fit(tmp_path, tiny_model()).save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (checkpoint["callbacks"]["BalancedQuantization"] if part == "callback" else checkpoint["lightning_balq"])[
        "version"
    ] = 9
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    with pytest.raises(ValueError, match=r"holds version 9 of the state of .*, this is version 1: install"):
        quiet_trainer(tmp_path, callbacks=[callback()], max_epochs=4).fit(
            tiny_model(), Batches(), ckpt_path=tmp_path / "newer.ckpt"
        )


def test_users_own_checkpoint_hooks_still_run(tmp_path: Path) -> None:
    class Hooked(TinyModel):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = 7

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.loaded = checkpoint["mine"]

    fit(tmp_path, Hooked()).save_checkpoint(tmp_path / "last.ckpt")
    model = Hooked()
    quiet_trainer(tmp_path, callbacks=[callback()]).test(model, Batches(), tmp_path / "last.ckpt", verbose=False)
    assert model.loaded == 7


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("source", ["checkpoint", "weights"])
def test_quantizing_a_trained_model_at_once_warns_at_few_bits(
    tmp_path: Path, bits: int, source: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = tiny_model()
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, Batches())
    trainer.save_checkpoint(tmp_path / "float.ckpt")
    path = tmp_path / "float.ckpt" if source == "checkpoint" else None
    for options, expected in (({}, bits <= 3), ({"blend_steps": 4}, False)):
        recwarn.clear()
        fresh = tiny_model(seed=3)
        if source == "weights":
            fresh.load_state_dict(model.state_dict())
        trainer = quiet_trainer(tmp_path, callbacks=[UniformQuantization(bits, verbose=0, **options)], max_epochs=2)
        trainer.fit(fresh, Batches(), ckpt_path=path)
        warned = [str(w.message) for w in recwarn if "usually destroys" in str(w.message)]
        assert len(warned) == expected
        if expected:
            assert f"{bits} bits at once" in warned[0] and "`start_step` or `blend_steps`" in warned[0]


def test_a_fresh_or_already_quantized_model_does_not_warn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model()
    for _ in range(2):
        fit(tmp_path, model)
    assert not [w for w in recwarn if "usually destroys" in str(w.message)]
