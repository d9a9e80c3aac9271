"""What goes wrong in a long run: numbers that are no longer finite, and disks that are full."""

import errno
import inspect
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import Logger

from lightning_balq import BalancedQuantization
from lightning_balq.nn import NonFiniteError, quantized_layers
from tests.callback.tiny import Batches, TinyModel, quiet_trainer, tiny_model

STEPS = 6
"""Optimizer steps of an epoch of ``Batches``."""


class Change(Callback):
    """Does something to the model at the end of some steps, counted from 1."""

    def __init__(self, actions: dict[int, Callable[[Any], None]]) -> None:
        self.actions = actions

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.actions.get(trainer.global_step, lambda _: None)(pl_module)


def spoil_weight(model: Any, name: str = "net.7") -> None:
    model.get_submodule(name).weight[0, 0] = float("nan")


def spoil_range(model: Any) -> None:
    state = {name: state for name, _, state in quantized_layers(model)}["net.7"]
    state.inputs["input"].range.fill_(float("inf"))


def spoil_parameter(name: str) -> Callable[[Any], None]:
    return lambda model: getattr(model.net[7], name).fill_(float("nan"))


def quantization(**options: Any) -> BalancedQuantization:
    return BalancedQuantization(2, 2, **{"verbose": 0, "record_every_n_steps": 0} | options)


# ---- numbers that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "named", "options"),
    [
        (spoil_weight, "`weight`", {}),
        (spoil_range, "range of `input`", {}),
        (spoil_parameter("balq_range_input"), "`balq_range_input`", {"activation_range": "pact"}),
        (spoil_parameter("balq_log_scale_weight"), "`balq_log_scale_weight`", {"scale": "learned"}),
        (spoil_parameter("balq_log_scale_input"), "`balq_log_scale_input`", {"activation_range": "lsq"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_finite_is_an_error_that_names_layer_and_step(
    tmp_path: Path, spoil: Any, named: str, options: dict[str, Any]
) -> None:
    model = tiny_model()
    trainer = quiet_trainer(tmp_path, callbacks=[Change({4: spoil}), quantization(record_every_n_steps=2, **options)])
    with pytest.raises(NonFiniteError, match=f"^{named} of layer 'net.7' holds NaN or infinite values.*, after step 4"):
        trainer.fit(model, Batches())
    assert len(model.losses) == 4


def test_weights_that_training_itself_blows_up_are_found_at_the_next_record(tmp_path: Path) -> None:
    class Diverging(TinyModel):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e20)

    torch.manual_seed(0)
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, verbose=0, record_every_n_steps=5)])
    with pytest.raises(NonFiniteError, match=r"of layer 'net.3' .* \(one of 2 layers\), after step 5"):
        trainer.fit(Diverging(), Batches())


def test_it_is_found_at_the_end_if_nothing_is_recorded(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[Change({STEPS: spoil_weight}), quantization()])
    with pytest.raises(NonFiniteError, match=f"of layer 'net.7' .*, after step {STEPS}"):
        trainer.fit(tiny_model(), Batches())


def test_a_checkpoint_that_is_not_finite_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.fit(tiny_model(), Batches())
    trainer.save_checkpoint(tmp_path / "float.ckpt")
    checkpoint = torch.load(tmp_path / "float.ckpt", weights_only=False)
    checkpoint["state_dict"]["net.3.weight"].fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "float.ckpt")
    model = tiny_model()
    with pytest.raises(NonFiniteError, match=f"`weight` of layer 'net.3' .*, after step {STEPS}"):
        quiet_trainer(tmp_path, callbacks=[quantization()], max_epochs=2).fit(
            model, Batches(), ckpt_path=tmp_path / "float.ckpt"
        )
    assert model.losses == []


def test_training_goes_on_if_asked_with_one_warning_for_each_layer(tmp_path: Path) -> None:
    def spoil(model: Any) -> None:
        spoil_weight(model, "net.3")
        spoil_range(model)

    model = tiny_model()
    callback = quantization(non_finite="warn", record_every_n_steps=1)
    trainer = quiet_trainer(tmp_path, callbacks=[Change({2: spoil}), callback], max_epochs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, Batches())
    said = sorted(str(warning.message) for warning in caught if "NaN or infinite" in str(warning.message))
    assert len(model.losses) == 2 * STEPS
    assert len(said) == 2
    assert "`weight` of layer 'net.3' holds NaN or infinite values" in said[0] and "after step 2." in said[0]
    assert "of layer 'net.7' holds" in said[1]


SAVING: dict[str, dict[str, Any]] = {
    "each step": {"every_n_train_steps": 1},
    "each step, weights only": {"every_n_train_steps": 1, "save_weights_only": True},
    "each step, one file": {"every_n_train_steps": 1, "filename": "same", "enable_version_counter": False},
    "best loss": {"every_n_train_steps": 1, "monitor": "train_loss", "mode": "max"},
    "several": {"every_n_train_steps": 2, "monitor": "train_loss", "save_top_k": 2},
    "each epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "after validation": {"every_n_epochs": 1},
}
if "save_on_exception" in inspect.signature(ModelCheckpoint).parameters:
    SAVING["on exceptions"] = {"every_n_train_steps": 1, "save_on_exception": True}


def saved(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: torch.load(path, weights_only=False) for path in sorted(folder.glob("*.ckpt"))}


def are_finite(checkpoint: dict[str, Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize("non_finite", ["error", "warn"])
@pytest.mark.parametrize("options", SAVING.values(), ids=SAVING)
@pytest.mark.filterwarnings("ignore:.*holds NaN or infinite values:UserWarning")
def test_nothing_that_is_not_finite_is_saved_over_the_last_good_checkpoint(
    tmp_path: Path, options: dict[str, Any], non_finite: Any
) -> None:
    keep = ModelCheckpoint(tmp_path, save_last=True, **options)
    callbacks = [keep, Change({5: spoil_weight}), quantization(non_finite=non_finite)]
    trainer = short_trainer(tmp_path, callbacks)
    if non_finite == "error":
        with pytest.raises(NonFiniteError, match=r"of layer 'net.\d' holds .*: no checkpoint was written"):
            trainer.fit(tiny_model(), Batches(), Batches())
    else:
        trainer.fit(tiny_model(), Batches(), Batches())
        assert trainer.global_step == 6
    files = saved(tmp_path)
    assert all(are_finite(checkpoint) for checkpoint in files.values())
    assert files["last.ckpt"]["global_step"] == (3 if "every_n_epochs" in options else 4)
    assert Path(keep.best_model_path).name in files  # it did not note a file that was never written
    assert set(keep.best_k_models) <= {str(tmp_path / name) for name in files}
    assert not {name for name in vars(keep) if name.startswith("on_")}  # no hook of ours is left


def test_without_the_callback_the_last_checkpoint_is_not_finite(tmp_path: Path) -> None:
    callbacks = [Change({5: spoil_weight}), ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)]
    short_trainer(tmp_path, callbacks).fit(tiny_model(), Batches())
    assert not are_finite(saved(tmp_path)["last.ckpt"])


def short_trainer(root: Path, callbacks: list[Callback]) -> Any:
    """Two epochs of three steps."""
    options = {"enable_checkpointing": True, "limit_train_batches": 3, "limit_val_batches": 1, "max_epochs": 2}
    return quiet_trainer(root, callbacks=callbacks, num_sanity_val_steps=0, **options)


def test_checkpoints_are_saved_again_once_all_is_finite(tmp_path: Path) -> None:
    def repair(model: Any) -> None:
        model.net[7].weight.data.nan_to_num_()

    change = Change({2: spoil_weight, 4: repair})
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    callbacks = [change, quantization(non_finite="warn"), keep]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    # What is trained while a weight is NaN may spread it: so nothing is trained.
    model = tiny_model()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)  # type: ignore[method-assign]
    model.on_before_optimizer_step = lambda optimizer: model.zero_grad()  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="`weight` of layer 'net.7' holds NaN"):
        trainer.fit(model, Batches())
    assert list(saved(tmp_path)) == ["step=1.ckpt", "step=4.ckpt", "step=5.ckpt", "step=6.ckpt"]


def test_a_checkpoint_on_any_exception_is_refused_and_the_exception_stays(tmp_path: Path) -> None:
    def fail(model: Any) -> None:
        spoil_weight(model)
        raise RuntimeError("out of cheese")

    callbacks = [OnExceptionCheckpoint(tmp_path, "failed"), Change({2: fail}), quantization()]
    with (
        pytest.warns(UserWarning, match="`weight` of layer 'net.7' .* at step 2: no checkpoint was written"),
        pytest.raises(RuntimeError, match="out of cheese"),
    ):
        quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True).fit(tiny_model(), Batches())
    assert saved(tmp_path) == {}


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_asked_for_by_hand_is_refused(tmp_path: Path, weights_only: bool) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[quantization(non_finite="warn")])
    model = tiny_model()
    trainer.fit(model, Batches())
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    spoil_weight(model.requires_grad_(False))
    with pytest.raises(NonFiniteError, match="no checkpoint was written"):
        trainer.save_checkpoint(tmp_path / "good.ckpt", weights_only)
    assert are_finite(saved(tmp_path)["good.ckpt"])


# ---- a full disk ----------------------------------------------------------------------------------------------------


class FileLogger(Logger):
    """Writes each record to a file, as loggers do."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.records = 0

    name = version = None

    def log_hyperparams(self, params: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "balq/effective_bitwidth" in metrics:
            self.records += 1
            with self.path.open("a") as file:
                file.write(json.dumps(metrics) + "\n")


class FullLogger(FileLogger):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "balq/effective_bitwidth" in metrics:
            self.records += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "full",
    [
        lambda: FullLogger(Path()),
        pytest.param(
            lambda: FileLogger(Path("/dev/full")),
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux"),
        ),
    ],
    ids=["raised", "/dev/full"],
)
def test_training_goes_on_with_one_warning_when_records_cannot_be_written(tmp_path: Path, full: Any) -> None:
    loggers = [full(), FileLogger(tmp_path / "records")]
    model, alone = tiny_model(), tiny_model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(tmp_path, callbacks=[quantization(record_every_n_steps=2)], logger=loggers)
        trainer.fit(model, Batches())
    said = [str(warning.message) for warning in caught if "could not be recorded" in str(warning.message)]
    assert len(said) == 1 and "No space left on device" in said[0] and type(loggers[0]).__name__ in said[0]
    assert [logger.records for logger in loggers] == [3, 3]
    assert len((tmp_path / "records").read_text().splitlines()) == 3
    assert "balq/effective_bitwidth" in trainer.callback_metrics
    quiet_trainer(tmp_path, callbacks=[quantization(record_every_n_steps=2)]).fit(alone, Batches())
    assert model.losses == alone.losses


def test_errors_of_a_logger_that_are_no_fault_of_the_disk_are_shown(tmp_path: Path) -> None:
    class Wrong(FileLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            raise KeyError("a bug")

    trainer = quiet_trainer(tmp_path, callbacks=[quantization(record_every_n_steps=2)], logger=Wrong(tmp_path))
    with pytest.raises(KeyError, match="a bug"):
        trainer.fit(tiny_model(), Batches())


def test_training_goes_on_with_one_warning_when_tables_cannot_be_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = tiny_model()
    trainer = quiet_trainer(tmp_path, callbacks=[quantization(record_every_n_steps=2, verbose=1)])
    monkeypatch.setattr(sys, "stdout", Full())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, Batches())
    said = [str(warning.message) for warning in caught if "could not be recorded" in str(warning.message)]
    assert len(said) == 1 and "the terminal could not write" in said[0] and "No space left on device" in said[0]
    assert len(model.losses) == STEPS
