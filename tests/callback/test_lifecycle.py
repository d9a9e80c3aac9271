"""What the callback does to a model during fit, validate, test and predict, and what it leaves behind."""

import contextlib
import copy
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from packaging.version import Version
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_balq import BalancedQuantization, DoReFaQuantization, UniformQuantization, unquantize_
from lightning_balq.functional import balanced_fake_quantize, dorefa_fake_quantize, uniform_fake_quantize
from lightning_balq.nn import activation_quantizers, quantized_layers
from tests.callback.tiny import Batches, TinyModel, examples, quiet_trainer, tiny_model, tiny_net

BY_LIGHTNING = {"_trainer", "_hparams", "_hparams_initial"}
"""What fit itself adds to the ``__dict__`` of a LightningModule."""


def weights_only(bits: int = 2, **kwargs: Any) -> BalancedQuantization:
    return BalancedQuantization(bits, scale="max", verbose=0, **kwargs)


def hand_quantized(model: TinyModel, quantize: Any) -> nn.Sequential:
    """The float network with the weights of the two middle layers replaced."""
    net = tiny_net()
    net.load_state_dict(model.net.state_dict())
    with torch.no_grad():
        for layer in (net[3], net[7]):
            layer.weight.copy_(quantize(layer.weight))
    return net.train(model.training)


@pytest.mark.parametrize(
    ("callback", "quantize"),
    [
        (BalancedQuantization(2, scale="mean", verbose=0), lambda w: balanced_fake_quantize(w, 2, scale="mean")),
        (UniformQuantization(3, scale="mean", verbose=0), lambda w: uniform_fake_quantize(w, 3, scale="mean")),
        (DoReFaQuantization(1, verbose=0), lambda w: dorefa_fake_quantize(w, 1)),
    ],
    ids=["balanced", "uniform", "dorefa"],
)  # fmt: skip
def test_after_fit_the_model_is_the_network_that_was_trained(tmp_path: Path, callback: Any, quantize: Any) -> None:
    model = tiny_model()
    quiet_trainer(tmp_path, callbacks=[callback]).fit(model, Batches())
    images = torch.stack([x for x, _ in examples(seed=1)])
    model.eval()
    expected = hand_quantized(model, quantize)
    assert_close(model(images), expected(images), rtol=0, atol=0)
    assert not torch.equal(expected(images), copy.deepcopy(model.net).apply(unquantize_)(images))


def test_training_loss_is_that_of_the_hand_quantized_network(tmp_path: Path) -> None:
    model = tiny_model()
    expected = hand_quantized(model, lambda w: balanced_fake_quantize(w, 2))
    quiet_trainer(tmp_path, callbacks=[weights_only()], limit_train_batches=1).fit(model, Batches())
    images, labels = next(iter(Batches()))
    assert model.losses == [nn.functional.cross_entropy(expected(images), labels).item()]


@pytest.mark.parametrize(
    "trainer_class", [pl.Trainer, pytorch_lightning.Trainer], ids=["lightning", "pytorch_lightning"]
)
def test_one_class_works_in_both_packages(tmp_path: Path, trainer_class: Any) -> None:
    if trainer_class is pytorch_lightning.Trainer and Version(pytorch_lightning.__version__) < Version("2.6"):
        pytest.skip("before 2.6, pytorch_lightning takes no callback of lightning.pytorch")
    base = pl.LightningModule if trainer_class is pl.Trainer else pytorch_lightning.LightningModule
    body = {key: value for key, value in vars(TinyModel).items() if key not in ("__dict__", "__weakref__", "__init__")}

    def init(self: Any) -> None:
        base.__init__(self)
        self.net, self.losses = tiny_net(), []

    model = type("TwinModel", (base,), {**body, "__init__": init})()
    trainer = trainer_class(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[BalancedQuantization(2, 2, verbose=0, record_every_n_steps=5)],
    )  # fmt: skip
    trainer.fit(model, Batches(), Batches())
    assert [name for name, _, _ in quantized_layers(model)] == ["net.3", "net.7"]
    assert trainer.callback_metrics["balq/effective_bitwidth"] > 1.5


def test_validate_test_and_predict_alone_quantize(tmp_path: Path) -> None:
    for run in ("validate", "test", "predict"):
        model = tiny_model()
        expected = hand_quantized(model, lambda w: balanced_fake_quantize(w, 2)).eval()
        getattr(quiet_trainer(tmp_path, callbacks=[weights_only()]), run)(model, Batches())
        images = torch.stack([x for x, _ in examples()])
        assert_close(model.eval()(images), expected(images), rtol=0, atol=0)


def test_fit_validate_test_predict_fit_again_quantizes_once(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0)])
    trainer.fit(model, Batches(), Batches())
    classes = [type(module) for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    validated = trainer.validate(model, Batches(), verbose=False)
    assert trainer.validate(model, Batches(), verbose=False) == validated
    trainer.test(model, Batches(), verbose=False)
    trainer.predict(model, Batches())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, Batches(), Batches())
    assert [type(module) for module in model.modules()] == classes
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == hooks


@pytest.mark.parametrize("with_callback", [True, False], ids=["with callback", "without callback"])
def test_module_stays_quantized_in_a_second_trainer(tmp_path: Path, with_callback: bool) -> None:
    model = tiny_model()
    quiet_trainer(tmp_path, callbacks=[weights_only()]).fit(model, Batches())
    callbacks = [weights_only()] if with_callback else []
    quiet_trainer(tmp_path, callbacks=callbacks).fit(model, Batches())
    model.eval()
    images = torch.stack([x for x, _ in examples()])
    expected = hand_quantized(model, lambda w: balanced_fake_quantize(w, 2))
    assert_close(model(images), expected(images), rtol=0, atol=0)


def test_unquantize_after_fit_restores_the_float_model_exactly(tmp_path: Path) -> None:
    model, untouched = tiny_model(), tiny_model()
    quiet_trainer(tmp_path, callbacks=[]).fit(untouched, Batches())
    quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0)]).fit(model, Batches(), Batches())
    unquantize_(model)
    for (name, module), (_, reference) in zip(model.named_modules(), untouched.named_modules(), strict=True):
        assert type(module) is type(reference), name
        assert list(module.__dict__) == list(reference.__dict__), name
    assert list(model.state_dict()) == list(untouched.state_dict())


class Fails(Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            raise self.error("stop here")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_module_is_usable_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    model = tiny_model()
    callback = BalancedQuantization(2, 2, verbose=0, record_every_n_steps=1)
    trainer = quiet_trainer(tmp_path, callbacks=[callback, Fails(error)])
    with contextlib.suppress(RuntimeError, KeyboardInterrupt, SystemExit):  # which of them is up to Lightning
        trainer.fit(model, Batches())
    assert len(model.losses) == 2
    assert all(state.schedule.timer is None for _, _, state in quantized_layers(model))
    quiet_trainer(tmp_path, callbacks=[callback]).fit(model, Batches(), Batches())
    assert len(model.losses) == 8
    unquantize_(model)
    assert type(model.net[3]) is nn.Conv2d


def test_exception_before_layers_are_built_leaves_no_trace(tmp_path: Path) -> None:
    class Broken(TinyModel):
        def prepare_data(self) -> None:
            return None

        def setup(self, stage: str) -> None:
            raise RuntimeError("no data")

    model = Broken()
    keys = set(model.__dict__)
    with pytest.raises(RuntimeError, match="no data"):
        quiet_trainer(tmp_path, callbacks=[weights_only()]).fit(model, Batches())
    assert set(model.__dict__) - keys <= BY_LIGHTNING and type(model.net[3]) is nn.Conv2d


@pytest.mark.parametrize("stop", ["early_stopping", "max_time", "max_steps"])
def test_stopped_training_leaves_a_usable_module(tmp_path: Path, stop: str) -> None:
    options: dict[str, Any] = {
        "early_stopping": {"callbacks": [EarlyStopping("val_loss", patience=0, min_delta=10.0)], "max_epochs": 5},
        "max_time": {"max_time": "00:00:00:00", "max_epochs": 5},
        "max_steps": {"max_steps": 3, "max_epochs": -1},
    }[stop]
    callbacks = [*options.pop("callbacks", []), weights_only()]
    model = tiny_model()
    quiet_trainer(tmp_path, callbacks=callbacks, **options).fit(model, Batches(), Batches())
    model.eval()
    images = torch.stack([x for x, _ in examples()])
    expected = hand_quantized(model, lambda w: balanced_fake_quantize(w, 2))
    assert_close(model(images), expected(images), rtol=0, atol=0)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_built_late_are_quantized(tmp_path: Path, hook: str) -> None:
    class Late(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = None

        def build(self) -> None:
            self.net = tiny_net() if self.net is None else self.net

    setattr(Late, hook, (lambda self, stage: self.build()) if hook == "setup" else Late.build)
    model = Late()
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0)])
    trainer.fit(model, Batches())
    assert [name for name, _, _ in quantized_layers(model)] == ["net.3", "net.7"]
    assert hook not in model.__dict__
    trainer.test(model, Batches(), verbose=False)
    trained = {id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.parameters()} == trained


def test_validation_test_and_predict_change_no_range(tmp_path: Path) -> None:
    model = tiny_model()
    callback = BalancedQuantization(2, 2, verbose=0)
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    trainer.fit(model, Batches())

    def state() -> list[Tensor]:
        quantizers = activation_quantizers(model)
        return [tensor.clone() for q in quantizers for tensor in (q.range, q.signed, q.pending, q.batches)]

    before = state()
    other = Batches([(100 * x - 50, y) for x, y in examples(seed=2)])
    trainer.validate(model, other, verbose=False)
    trainer.test(model, other, verbose=False)
    trainer.predict(model, other)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_sanity_check_changes_no_training(tmp_path: Path) -> None:
    losses = []
    for steps in (0, 2):
        model = tiny_model()
        trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0)], num_sanity_val_steps=steps)
        trainer.fit(model, Batches(), Batches([(100 * x - 50, y) for x, y in examples(seed=2)]))
        losses.append(model.losses)
    assert losses[0] == losses[1]


def test_ranges_follow_the_training_batches(tmp_path: Path) -> None:
    model = tiny_model()
    quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0)]).fit(model, Batches())
    for quantizer in activation_quantizers(model):
        assert quantizer.batches == 6 and quantizer.ready and not bool(quantizer.signed)
        assert quantizer.range > 0 and torch.equal(quantizer.pending, torch.zeros(3))


def test_pattern_without_a_match_is_an_error_in_setup_and_leaves_the_model(tmp_path: Path) -> None:
    model = tiny_model()
    keys = {name: set(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"`exclude` holds the pattern 'nett.3'.*near: 'net.3'"):
        quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, exclude=["nett.3"])]).fit(model, Batches())
    assert type(model.net[3]) is nn.Conv2d and model.losses == []
    assert all(set(module.__dict__) - keys[name] <= BY_LIGHTNING for name, module in model.named_modules())


def test_nan_weight_is_an_error_in_setup_that_names_the_layer(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.net[7].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"`weight` of layer 'net.7' holds NaN or infinite values"):
        quiet_trainer(tmp_path, callbacks=[weights_only()]).fit(model, Batches())


def test_nan_weight_in_training_is_an_error_that_names_the_layer(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                pl_module.net[3].weight[0, 0] = float("inf")

    callbacks = [Poison(), weights_only(record_every_n_steps=2)]
    with pytest.raises(ValueError, match=r"layer 'net.3' holds NaN or infinite values"):
        quiet_trainer(tmp_path, callbacks=callbacks).fit(tiny_model(), Batches())


def test_two_callbacks_on_disjoint_layers(tmp_path: Path) -> None:
    model = tiny_model()
    callbacks = [
        BalancedQuantization(2, include=["net.3"], verbose=0, name="conv"),
        BalancedQuantization(8, include=["net.7"], verbose=0, name="linear"),
    ]
    quiet_trainer(tmp_path, callbacks=callbacks).fit(model, Batches())
    assert {name: state.weights["weight"].bits for name, _, state in quantized_layers(model)} == {
        "net.3": 2,
        "net.7": 8,
    }


def test_two_callbacks_on_one_layer_are_refused(tmp_path: Path) -> None:
    callbacks = [weights_only(2), UniformQuantization(2, verbose=0)]
    with pytest.raises(ValueError, match=r"would both quantize 'net.3.weight' \(and 1 more\).*`include` or `exclude`"):
        quiet_trainer(tmp_path, callbacks=callbacks).fit(tiny_model(), Batches())


def test_two_callbacks_of_one_kind_need_names(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `BalancedQuantization`"):
        quiet_trainer(tmp_path, callbacks=[weights_only(), weights_only()])


def test_precision_that_replaces_linear_layers_is_refused(tmp_path: Path) -> None:
    class BitsandbytesPrecision(type(quiet_trainer(tmp_path).precision_plugin)):  # type: ignore[misc]
        pass

    trainer = quiet_trainer(tmp_path, callbacks=[weights_only()], plugins=[BitsandbytesPrecision()])
    with pytest.raises(Exception, match="cannot be combined with BitsandbytesPrecision"):
        trainer.fit(tiny_model(), Batches())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_reduced_and_double_precision_train_on_all_levels(tmp_path: Path, precision: str) -> None:
    class Casts(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0].to(self.net[0].weight.dtype), batch[1]), batch_idx)

    model = Casts()
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(3, 4, verbose=0)], precision=precision)
    trainer.fit(model, Batches())
    layer, state = next((layer, state) for name, layer, state in quantized_layers(model) if name == "net.7")
    levels = state.quantize_weight(layer, "weight").unique()
    assert len(levels) == 8 and all(torch.isfinite(torch.tensor(model.losses)))


def test_tables_are_printed_once_and_silenced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, record_every_n_steps=3)]).fit(tiny_model(), Batches())
    printed = capsys.readouterr().out
    assert len(re.findall("2 of 4 layers quantized", printed)) == 1
    assert len(re.findall("codes at step 6", printed)) == 1
    assert all(word in printed for word in ("net.3", "2/2", "8x4x3x3", "1,152", "first layer", "last layer"))
    quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0)]).fit(tiny_model(), Batches())
    assert "quantized" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True}, {"limit_train_batches": 0}], ids=str)
def test_unusual_trainers(tmp_path: Path, options: dict[str, Any]) -> None:
    if "barebones" in options:
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", callbacks=[weights_only(record_every_n_steps=2)], **options
        )
    else:
        trainer = quiet_trainer(tmp_path, callbacks=[weights_only()], **options)
    model = tiny_model()
    trainer.fit(model, Batches())
    assert [name for name, _, _ in quantized_layers(model)] == ["net.3", "net.7"]


def test_manual_optimization_with_several_steps_a_batch(tmp_path: Path) -> None:
    class Manual(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for _ in range(3):
                self.optimizers().zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                self.optimizers().step()

    trainer = quiet_trainer(tmp_path, callbacks=[weights_only(record_every_n_steps=7)])
    trainer.fit(Manual(), Batches())
    assert trainer.callback_metrics["balq/overhead"] > 0
