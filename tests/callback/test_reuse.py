"""A weight is quantized once between two of its changes, and training is what it is without reuse, bit for bit."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from torch.nn import functional as F

from lightning_balq import BalancedQuantization, BalancedQuantizer
from tests.callback.tiny import Batches, TinyModel, quiet_trainer, tiny_model
from tests.helpers import assert_equal

LAYERS = 2
"""Quantized layers of the model."""


@pytest.fixture
def computed(monkeypatch):
    """Names of the stages in which a weight was quantized."""
    stages = []
    levels = BalancedQuantizer.levels

    def counting(self, weight):
        stages.append(torch.is_grad_enabled())
        return levels(self, weight)

    monkeypatch.setattr(BalancedQuantizer, "levels", counting)
    return stages


def callback(**options):
    return BalancedQuantization(2, 2, verbose=0, record_every_n_steps=0, **options)


def fit(tmp_path, model=None, *, reuse=True, callbacks=(), validate=False, **options):
    """Losses, weights and metrics of a short fit."""
    model = tiny_model() if model is None else model
    trainer = quiet_trainer(
        tmp_path, callbacks=[callback(reuse_quantized=reuse), *callbacks], num_sanity_val_steps=0, **options
    )
    trainer.fit(model, Batches(), *([Batches()] if validate else []))
    return model.losses, model.state_dict(), dict(trainer.callback_metrics)


def assert_reuse_changes_nothing(tmp_path, make_model=tiny_model, make_callbacks=tuple, **options):
    with_reuse = fit(tmp_path, make_model(), callbacks=make_callbacks(), **options)
    without = fit(tmp_path, make_model(), callbacks=make_callbacks(), reuse=False, **options)
    assert_equal(with_reuse, without)


# ---- how often -------------------------------------------------------------------------------------------------------


def test_a_training_step_quantizes_each_weight_once(tmp_path, computed):
    fit(tmp_path)
    assert len(computed) == 6 * LAYERS


def test_batches_whose_gradients_are_accumulated_share_the_levels(tmp_path, computed):
    fit(tmp_path, accumulate_grad_batches=3)
    assert len(computed) == 2 * LAYERS


def test_validation_quantizes_each_weight_once_for_all_batches(tmp_path, computed):
    fit(tmp_path, validate=True, limit_train_batches=1)
    assert len(computed) == 2 * LAYERS


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_evaluation_quantizes_each_weight_once_for_all_batches(tmp_path, computed, entry):
    getattr(quiet_trainer(tmp_path, callbacks=[callback()]), entry)(tiny_model(), Batches(), **silent(entry))
    assert len(computed) == LAYERS


def silent(entry):
    return {} if entry == "predict" else {"verbose": False}


def test_layer_called_twice_in_a_forward_is_quantized_once(tmp_path, computed):
    class Twice(TinyModel):
        def forward(self, x):
            return self.net(x) + self.net(x.flip(-1))

    fit(tmp_path, Twice())
    assert len(computed) == 6 * LAYERS


def test_without_reuse_every_forward_quantizes(tmp_path, computed):
    fit(tmp_path, reuse=False, accumulate_grad_batches=3)
    assert len(computed) == 6 * LAYERS


def test_nothing_is_reused_or_kept_outside_of_a_loop(tmp_path, computed):
    model = tiny_model()
    trainer = quiet_trainer(tmp_path, callbacks=[callback()])
    trainer.fit(model, Batches())
    computed.clear()
    x = torch.randn(2, 1, 8, 8)
    before = model(x)
    model.net[3].weight.data.mul_(-1)
    assert not torch.equal(model(x), before)
    assert len(computed) == 2 * LAYERS


# ---- exact, whatever changes the weights -----------------------------------------------------------------------------


class With(TinyModel):
    """A tiny model with another optimizer."""

    def __init__(self, optimizer, **options):
        super().__init__()
        self.make = lambda parameters: optimizer(parameters, **options)

    def configure_optimizers(self):
        return self.make(self.parameters())


def seeded(make):
    def build():
        torch.manual_seed(0)
        return make()

    return build


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "fused": True}),
        (torch.optim.Adam, {"lr": 0.01, "fused": True}),
        (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
        (torch.optim.Adam, {"lr": 0.01, "foreach": True}),
        (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3}),
    ],
    ids=["SGD fused", "Adam fused", "AdamW fused", "Adam foreach", "LBFGS"],
)
def test_optimizers(tmp_path, optimizer, options):
    make = seeded(lambda: With(optimizer, **options))
    assert_reuse_changes_nothing(tmp_path, make, max_epochs=2)
    assert_reuse_changes_nothing(tmp_path, make, max_epochs=2, accumulate_grad_batches=3)


class WithoutHooks:
    """An optimizer that is none of torch's, so that no hook of theirs tells of its steps."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters)}]
        self.state, self.defaults = {}, {}

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for parameter in self.param_groups[0]["params"]:
            parameter.data.add_(parameter.grad, alpha=-0.1)
        return loss

    def zero_grad(self, set_to_none=True):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Manual(TinyModel):
    """Manual optimization with two steps a batch, by an optimizer that writes to ``.data`` and tells nobody."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.own = WithoutHooks(self.parameters())

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.own.zero_grad()
            self.manual_backward(loss)
            self.own.step()
            self.losses.append(loss.item())

    def configure_optimizers(self):
        return None


def test_two_steps_in_a_batch_by_an_optimizer_that_nobody_watches(tmp_path):
    assert_reuse_changes_nothing(tmp_path, seeded(Manual))


class Sharpness(TinyModel):
    """Sharpness-aware minimisation: a second forward at weights that were moved through ``.data``."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        moves = [0.05 * parameter.grad.sign() for parameter in self.parameters()]
        for parameter, move in zip(self.parameters(), moves, strict=True):
            parameter.data.add_(move)
        optimizer.zero_grad()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.manual_backward(loss)
        for parameter, move in zip(self.parameters(), moves, strict=True):
            parameter.data.sub_(move)
        optimizer.step()


def test_weights_moved_between_two_forwards_of_a_batch(tmp_path):
    assert_reuse_changes_nothing(tmp_path, seeded(Sharpness))


class ClampData(Callback):
    """Clips weights after each step, in a way that their version does not show."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        for parameter in pl_module.parameters():
            parameter.data.clamp_(-0.1, 0.1)


def test_weights_clipped_through_data_after_each_step(tmp_path):
    assert_reuse_changes_nothing(tmp_path, make_callbacks=lambda: [ClampData()], max_epochs=2)


class Flip(Callback):
    """Changes weights between two batches of one accumulation window, by a change that shows."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            pl_module.net[3].weight.neg_()


def test_weights_changed_between_accumulated_batches(tmp_path):
    assert_reuse_changes_nothing(tmp_path, make_callbacks=lambda: [Flip()], accumulate_grad_batches=3)


class SwapForValidation(Callback):
    """Validates with other weights, put in place and taken back through ``.data`` as averaging callbacks do."""

    def on_validation_epoch_start(self, trainer, pl_module):
        self.kept = [parameter.data.clone() for parameter in pl_module.parameters()]
        for parameter in pl_module.parameters():
            parameter.data.mul_(-0.5)

    def on_validation_epoch_end(self, trainer, pl_module):
        for parameter, kept in zip(pl_module.parameters(), self.kept, strict=True):
            parameter.data.copy_(kept)


def test_other_weights_for_a_validation_within_an_epoch(tmp_path):
    assert_reuse_changes_nothing(
        tmp_path, make_callbacks=lambda: [SwapForValidation()], validate=True, val_check_interval=2, max_epochs=2
    )
    _, _, metrics = fit(tmp_path, validate=True)
    _, _, swapped = fit(tmp_path, callbacks=[SwapForValidation()], validate=True)
    assert metrics["val_loss"] != swapped["val_loss"]


def averaging():
    try:
        from lightning.pytorch.callbacks import EMAWeightAveraging
    except ImportError:
        pytest.skip("needs the EMA callback of newer lightning")
    return [EMAWeightAveraging(decay=0.5)]


def test_exponential_moving_average(tmp_path):
    assert_reuse_changes_nothing(tmp_path, make_callbacks=averaging, validate=True, val_check_interval=2, max_epochs=2)


def test_stochastic_weight_averaging(tmp_path):
    make = lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]  # noqa: E731  # one use
    assert_reuse_changes_nothing(tmp_path, make_callbacks=make, validate=True, max_epochs=3)


def test_double_precision(tmp_path):
    class Doubles(TinyModel):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch[0].double(), batch[1]], batch_idx)

    assert_reuse_changes_nothing(tmp_path, seeded(Doubles), precision="64-true")


def test_levels_of_a_sanity_check_can_be_trained_with(tmp_path):
    model = tiny_model()
    quiet_trainer(tmp_path, callbacks=[callback()], num_sanity_val_steps=2).fit(model, Batches(), Batches())
    plain = tiny_model()
    quiet_trainer(tmp_path, callbacks=[callback(reuse_quantized=False)], num_sanity_val_steps=2).fit(
        plain, Batches(), Batches()
    )
    assert_equal(model.losses, plain.losses)


def test_loading_weights_between_batches(tmp_path):
    class Load(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            state = {key: value * 0.9 for key, value in pl_module.state_dict().items()}
            pl_module.load_state_dict(state)

    assert_reuse_changes_nothing(tmp_path, make_callbacks=lambda: [Load()], accumulate_grad_batches=2)


def test_exception_leaves_no_levels_behind(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            raise RuntimeError("stop")

    model = tiny_model()
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, model, callbacks=[Stop()])
    x = torch.randn(2, 1, 8, 8)
    before = model(x)
    model.net[3].weight.data.mul_(-1)
    assert not torch.equal(model(x), before)


def test_option_is_checked():
    with pytest.raises(TypeError, match="`reuse_quantized` must be a bool, got 1"):
        callback(reuse_quantized=1)
