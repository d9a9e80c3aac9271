"""Section "Life cycle" of docs/compatibility.md."""

import contextlib
import copy
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader

from lightning_balq import BalancedQuantization, UniformQuantization, unquantize_
from lightning_balq.nn import learned_parameters, quantized_layers
from tests.callback.tiny import Batches, TinyModel, examples, quiet_trainer, tiny_net
from tests.compatibility.finders import finder_takes_part
from tests.compatibility.methods import METHODS, Decaying, decaying, each_method, fixed, learned, state
from tests.helpers import assert_equal, run_python


def fit(root: Path, model: TinyModel, *callbacks: Callback, ckpt_path: Any = None, **options: Any) -> Any:
    options = {"callbacks": list(callbacks), "max_epochs": 2, **options}
    trainer = quiet_trainer(root, **options)
    trainer.fit(model, Batches(), Batches(), ckpt_path=ckpt_path)
    return trainer


# ---- several runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [False, True], ids=["one trainer", "new trainers"])
@each_method
def test_fit_test_fit_equals_the_two_fits_alone(tmp_path: Path, method: Callable[..., Any], new: bool) -> None:
    ends = []
    for tested in (True, False):
        model, callback = decaying(), method(record_every_n_steps=2)
        trainer = fit(tmp_path, model, callback)
        if tested:
            evaluating = quiet_trainer(tmp_path, callbacks=[method()]) if new else trainer
            before = state(model)
            metrics = [evaluating.test(model, Batches(), verbose=False) for _ in range(2)]
            evaluating.validate(model, Batches(), verbose=False)
            evaluating.predict(model, Batches())
            assert metrics[0] == metrics[1]
            assert_equal(state(model), before)
        if new:
            trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=2)
        else:
            trainer.fit_loop.max_epochs = 4
        trainer.fit(model, Batches(), Batches())
        ends.append((model, trainer.callback_metrics))
    assert ends[0][0].losses == ends[1][0].losses and len(ends[0][0].losses) == 24
    assert_equal(state(ends[0][0]), state(ends[1][0]))
    recorded = [
        {k: v for k, v in metrics.items() if k.startswith("balq/") and "overhead" not in k} for _, metrics in ends
    ]
    assert_equal(recorded[0], recorded[1])


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@each_method
def test_layers_built_late_train_as_those_built_at_once(tmp_path: Path, method: Callable[..., Any], hook: str) -> None:
    class Late(Decaying):
        def __init__(self) -> None:
            super().__init__()
            self.ready, self.net = self.net, None

        def build(self) -> None:
            self.net = self.ready if self.net is None else self.net

    setattr(Late, hook, (lambda self, stage: self.build()) if hook == "setup" else Late.build)
    torch.manual_seed(0)
    late, plain = Late(), decaying()
    trainer = fit(tmp_path, late, method(include=["net.*"]))
    fit(tmp_path, plain, method(include=["net.*"]))
    assert late.losses == plain.losses
    assert_equal({k: v for k, v in state(late).items() if k.startswith("net.")},
                 {k: v for k, v in state(plain).items() if k.startswith("net.")})  # fmt: skip
    assert hook not in late.__dict__
    trainer.test(late, Batches(), verbose=False)


@each_method
def test_one_callback_for_several_models(tmp_path: Path, method: Callable[..., Any]) -> None:
    one = method(record_every_n_steps=2, start_step=3)
    for seed in (0, 1, 0):
        alone, shared = decaying(seed), decaying(seed)
        own = method(record_every_n_steps=2, start_step=3)
        expected = fit(tmp_path, alone, own)
        trainer = fit(tmp_path, shared, one)
        assert shared.losses == alone.losses
        assert_equal(state(shared), state(alone))
        assert trainer.callback_metrics.keys() == expected.callback_metrics.keys()
        assert len(one.state_dict()["overheads"]) == len(own.state_dict()["overheads"]) == 6


# ---- the tuner -------------------------------------------------------------------------------------------------------


class Tuned(TinyModel):
    """With what a tuner tunes, and data of the size that it says."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.05, 4

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(examples(), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(examples(seed=1), self.batch_size)


def tuned(seed: int = 0) -> Tuned:
    torch.manual_seed(seed)
    return Tuned()


def find_lr(trainer: Trainer, model: Tuned) -> None:
    Tuner(trainer).lr_find(model, num_training=8, update_attr=False)


def find_batch_size(trainer: Trainer, model: Tuned) -> None:
    Tuner(trainer).scale_batch_size(model, max_trials=2, init_val=2, steps_per_trial=2)
    model.batch_size = 4


class OwnLearningRate(LearningRateFinder):
    """Searches without taking what it finds."""

    def __init__(self) -> None:
        super().__init__(num_training_steps=8, update_attr=False)


SEARCHES: dict[str, Any] = {"lr_find": find_lr, "scale_batch_size": find_batch_size, "callback": None}


@pytest.mark.parametrize("options", [{}, {"start_step": 3, "blend_steps": 4}], ids=["at once", "late"])
@pytest.mark.parametrize("search", SEARCHES)
@each_method
def test_a_search_before_fit_changes_nothing(
    tmp_path: Path, method: Callable[..., Any], search: str, options: dict[str, int]
) -> None:
    if search == "callback" and finder_takes_part():
        pytest.skip("this Lightning counts steps of its finder as steps of the training")
    runs = []
    for searched in (True, False):
        model, callbacks = tuned(), [method(record_every_n_steps=2, **options)]
        if searched and search == "callback":
            callbacks.insert(0, OwnLearningRate())
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=2)
        if searched and search != "callback":
            SEARCHES[search](trainer, model)
            assert len(model.losses) > 0
        if search != "callback":
            model.losses.clear()
        trainer.fit(model)
        metrics = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("balq/") and "overhead" not in k}
        runs.append((model.losses[-12:], state(model), metrics, trainer.global_step))
    (losses, end, records, steps), (expected, expected_end, expected_records, expected_steps) = runs
    assert steps == expected_steps == 12
    assert losses == expected
    assert_equal(end, expected_end)
    assert_equal(records, expected_records)


@pytest.mark.parametrize("start_step", [0, 3])
def test_a_search_runs_the_network_that_training_starts_with(tmp_path: Path, start_step: int) -> None:
    losses = []
    for callbacks in ([learned(start_step=start_step)], [] if start_step else [learned()]):
        model = tuned()
        find_lr(quiet_trainer(tmp_path, callbacks=callbacks), model)
        losses.append(model.losses)
    assert losses[0] == losses[1] and len(losses[0]) > 3


# ---- unusual trainers ------------------------------------------------------------------------------------------------


@each_method
def test_fast_dev_run_trains_one_step_as_a_fit_of_one_step_does(tmp_path: Path, method: Callable[..., Any]) -> None:
    fast, one = decaying(), decaying()
    fit(tmp_path, fast, method(), fast_dev_run=True)
    fit(tmp_path, one, method(), max_steps=1, max_epochs=-1)
    assert fast.losses == one.losses
    assert_equal(state(fast), state(one))


@each_method
def test_barebones_trains_what_a_full_trainer_trains(tmp_path: Path, method: Callable[..., Any]) -> None:
    bare, full = decaying(), decaying()
    trainer = Trainer(
        barebones=True, accelerator="cpu", max_epochs=2, callbacks=[method(record_every_n_steps=2)],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(bare, Batches())
    fit(tmp_path, full, method(record_every_n_steps=2))
    assert bare.losses == full.losses
    assert_equal(state(bare), state(full))
    assert trainer.callback_metrics["balq/effective_bitwidth"] > 1


@each_method
def test_no_training_batches_leave_the_model_quantized_and_untrained(
    tmp_path: Path, method: Callable[..., Any]
) -> None:
    model = decaying()
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    fit(tmp_path, model, method(), limit_train_batches=0)
    assert [name for name, _, _ in quantized_layers(model)] == ["net.3", "net.7"]
    unquantize_(model)
    assert_equal(dict(model.state_dict()), expected)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_records_reach_no_logger_one_or_several(tmp_path: Path, number: int) -> None:
    loggers = [CSVLogger(tmp_path, name=str(index)) for index in range(number)]
    trainer = fit(tmp_path, decaying(), fixed(record_every_n_steps=4), logger=loggers or False)
    for logger in loggers:
        logger.save()
        rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        assert sum("balq/effective_bitwidth" in rows[0] and row.count(",") > 3 for row in rows[1:]) >= 3
    assert trainer.callback_metrics["balq/effective_bitwidth"] > 1


# ---- interrupted runs ------------------------------------------------------------------------------------------------


class Raise(Callback):
    """Raises in the middle of a step."""

    def __init__(self, step: int, error: type[BaseException]) -> None:
        self.step, self.error = step, error

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error("stop here")


@contextlib.contextmanager
def interrupts_restored() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)  # Lightning lets go of it once a fit was interrupted
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("again", ["same objects", "new objects"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@each_method
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(
    tmp_path: Path, method: Callable[..., Any], error: type[BaseException], again: str
) -> None:
    options: dict[str, Any] = {"start_step": 2, "blend_steps": 9, "record_every_n_steps": 2}
    whole, model, callback = decaying(), decaying(), method(**options)
    fit(tmp_path, whole, method(**options), max_epochs=3)
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="{step}")
    with interrupts_restored(), contextlib.suppress(RuntimeError, KeyboardInterrupt, SystemExit):
        fit(tmp_path, model, callback, kept, Raise(8, error), max_epochs=3, enable_checkpointing=True)
    assert len(model.losses) == 9
    assert {"on_train_batch_end", "on_validation_end"} & set(kept.__dict__) == set()
    if again == "new objects":
        model, callback = decaying(seed=1), method(**options)
    model.losses.clear()
    fit(tmp_path, model, callback, ckpt_path=tmp_path / "step=8.ckpt", max_epochs=3)
    assert model.losses == whole.losses[8:]
    assert_equal(state(model), state(whole))


class Once(Timer):
    """A timer that runs out after a number of steps, whatever the time."""

    def __init__(self, step: int) -> None:
        super().__init__({"hours": 1})
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self._duration = 0 if trainer.global_step >= self.step else 3600.0
        super().on_train_batch_end(trainer, *args, **kwargs)


@pytest.mark.parametrize("stop", ["early stopping", "max_time"])
@each_method
def test_a_run_that_stopped_within_an_epoch_goes_on_as_if_it_had_not(
    tmp_path: Path, method: Callable[..., Any], stop: str
) -> None:
    options: dict[str, Any] = {"start_step": 1, "blend_steps": 2}
    whole, resumed, first = decaying(), decaying(seed=1), decaying()
    fit(tmp_path, whole, method(**options), max_epochs=3)
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    stops = EarlyStopping("val_loss", patience=1, min_delta=99.0) if stop == "early stopping" else Once(8)
    extra = {"val_check_interval": 4, "check_val_every_n_epoch": None} if stop == "early stopping" else {}
    trainer = fit(tmp_path, first, method(**options), stops, kept, max_epochs=3, enable_checkpointing=True, **extra)
    assert trainer.global_step == 8
    fit(tmp_path, resumed, method(**options), ckpt_path=tmp_path / "step=8.ckpt", max_epochs=3)
    assert first.losses + resumed.losses == whole.losses
    assert_equal(state(resumed), state(whole))


# ---- several callbacks -----------------------------------------------------------------------------------------------


@each_method
def test_two_callbacks_on_disjoint_parts_train_as_one_on_both(tmp_path: Path, method: Callable[..., Any]) -> None:
    both, apart, whole, resumed = decaying(), decaying(), decaying(), decaying(seed=1)

    def pair() -> list[Any]:
        common: dict[str, Any] = {"quantize_first_last": True, "start_step": 3}
        return [method(include=["net.3"], name="conv", **common), method(include=["net.7"], name="linear", **common)]

    trainer = fit(tmp_path, apart, *pair())
    fit(tmp_path, both, method(include=["net.3", "net.7"], quantize_first_last=True, start_step=3))
    assert apart.losses == both.losses
    assert_equal(state(apart), state(both))
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)["callbacks"]
    assert set(saved) == {"BalancedQuantization[conv]", "BalancedQuantization[linear]"}
    fit(tmp_path, resumed, *pair(), ckpt_path=tmp_path / "two.ckpt", max_epochs=3)
    fit(tmp_path, whole, *pair(), max_epochs=3)
    assert_equal(state(resumed), state(whole))


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_two_callbacks_on_layers_built_late(tmp_path: Path, hook: str) -> None:
    class Late(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = None

        def build(self) -> None:
            self.net = tiny_net() if self.net is None else self.net

    setattr(Late, hook, (lambda self, stage: self.build()) if hook == "setup" else Late.build)
    model = Late()
    callbacks = [
        BalancedQuantization(2, include=["net.3"], quantize_first_last=True, verbose=0),
        UniformQuantization(3, include=["net.7"], quantize_first_last=True, verbose=0),
    ]
    quiet_trainer(tmp_path, callbacks=callbacks).test(model, Batches(), verbose=False)
    assert {name: layer.weights["weight"].bits for name, _, layer in quantized_layers(model)} == {
        "net.3": 2,
        "net.7": 3,
    }
    assert hook not in model.__dict__


@pytest.mark.parametrize("second", [fixed, learned, UniformQuantization], ids=["equal", "learned", "other"])
def test_two_callbacks_on_one_tensor_are_refused_and_it_is_named(tmp_path: Path, second: Any) -> None:
    first = fixed(include=["net.3"], quantize_first_last=True, name="first")
    other = second(name="second")
    model = decaying()
    with pytest.raises(
        ValueError, match=r"BalancedQuantization\[first\] and \w+\[second\] would both quantize 'net.3.w"
    ):
        fit(tmp_path, model, first, other)
    assert model.losses == []
    fit(tmp_path, model, first)
    assert len(model.losses) == 12


def test_two_callbacks_on_tied_weights_are_refused(tmp_path: Path) -> None:
    class Tied(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 3))
            self.net[3].weight = self.net[1].weight

    callbacks = [
        BalancedQuantization(2, include=["net.1"], quantize_first_last=True, verbose=0),
        UniformQuantization(2, include=["net.3"], quantize_first_last=True, verbose=0),
    ]
    with pytest.raises(ValueError, match=r"would both quantize 'net.1.weight', and a tensor .*tied weights"):
        fit(tmp_path, Tied(), *callbacks)


def test_two_callbacks_with_different_schedules_are_refused(tmp_path: Path) -> None:
    callbacks = [fixed(include=["net.3"], quantize_first_last=True, name="a"),
                 fixed(include=["net.7"], quantize_first_last=True, name="b", start_step=3)]  # fmt: skip
    with pytest.raises(
        ValueError, match=r"\[b\] has start_step=3 and blend_steps=0, .*\[a\] has 0 and 0, but a model has"
    ):
        fit(tmp_path, decaying(), *callbacks)


# ---- copies ----------------------------------------------------------------------------------------------------------


def saved_and_loaded(model: nn.Module, folder: Path) -> Any:
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


COPIES: dict[str, Callable[[nn.Module, Path], Any]] = {
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


class Copies(Callback):
    """Copies the model in the middle of a fit."""

    def __init__(self, how: Callable[[nn.Module, Path], Any], folder: Path) -> None:
        self.how, self.folder = how, folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 7:
            self.copied, self.before = self.how(pl_module, self.folder), state(pl_module)
            images = torch.stack([x for x, _ in examples(seed=1)])
            training = pl_module.training
            with torch.no_grad():
                self.expected = pl_module.eval()(images)
            pl_module.train(training)


@pytest.mark.parametrize("how", COPIES)
@each_method
def test_a_copy_made_in_a_fit_is_the_quantized_model_on_its_own(
    tmp_path: Path, method: Callable[..., Any], how: str
) -> None:
    model, undisturbed, copies = decaying(), decaying(), Copies(COPIES[how], tmp_path)
    fit(tmp_path, model, method(), copies)
    fit(tmp_path, undisturbed, method())
    images = torch.stack([x for x, _ in examples(seed=1)])
    copied = copies.copied
    assert model.losses == undisturbed.losses
    assert_equal(state(copied), copies.before)
    with torch.no_grad():
        assert_equal(copied.eval()(images), copies.expected)
    fit(tmp_path, copied.train(), method())  # and it can be trained
    assert_equal(state(model), state(undisturbed))
    unquantize_(copied)
    assert type(copied.net[3]) is nn.Conv2d and list(learned_parameters(copied)) == []


def test_a_model_saved_whole_runs_in_a_fresh_process(tmp_path: Path) -> None:
    images = torch.stack([x for x, _ in examples(seed=1)])
    for name, method in METHODS.items():
        model = decaying()
        fit(tmp_path, model, method())
        torch.save(model.eval(), tmp_path / f"{name}.pt")
        with torch.no_grad():
            torch.save([images, model(images)], tmp_path / f"{name}_expected.pt")
    script = """
import sys, torch
for name in sys.argv[2:]:
    model = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=False)
    images, expected = torch.load(f"{sys.argv[1]}/{name}_expected.pt", weights_only=True)
    with torch.no_grad():
        print(torch.equal(model(images), expected))
"""
    assert run_python(script, tmp_path, *METHODS).splitlines()[-2:] == ["True", "True"]
