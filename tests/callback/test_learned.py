"""Scales and ranges that are trained: their place in optimizers, checkpoints, averages and processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_balq import BalancedQuantization, LSQQuantization, UniformQuantization
from lightning_balq.nn import learned_parameters, quantized_layers
from tests.callback.test_reuse import averaging
from tests.callback.tiny import Batches, TinyModel, examples, quiet_trainer, tiny_model
from tests.helpers import assert_equal

METHODS = {
    "lsq": lambda **options: LSQQuantization(2, 2, activation_range="lsq", verbose=0, **options),
    "balanced, pact": lambda **options: BalancedQuantization(
        2, 2, scale="learned", granularity="per_channel", activation_range="pact", verbose=0, **options
    ),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Decaying(TinyModel):
    """With weight decay, and a learning rate that changes at every step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def decaying(seed: int = 0) -> Decaying:
    torch.manual_seed(seed)
    return Decaying()


def fit(root: Path, model: TinyModel, *callbacks: Callback, ckpt_path: Any = None, **options: Any) -> Any:
    trainer = quiet_trainer(root, callbacks=list(callbacks), **{"max_epochs": 3, **options})
    trainer.fit(model, Batches(), Batches(), ckpt_path=ckpt_path)
    return trainer


def values(model: TinyModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter, _ in learned_parameters(model)}


@each_method
def test_everything_is_trained_in_groups_of_its_own(tmp_path: Path, method: Any) -> None:
    model = decaying()
    trainer = fit(tmp_path, model, method(learned_lr_factor=0.5))
    groups = trainer.optimizers[0].param_groups
    owned = {id(parameter) for _, parameter, _ in learned_parameters(model)}
    assert [all(id(p) in owned for p in group["params"]) for group in groups] == [False] + [True] * (len(groups) - 1)
    assert not any(id(p) in owned for p in groups[0]["params"])
    assert {group["lr"] for group in groups[1:]} == {groups[0]["lr"] / 2}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for _, parameter, has_decay in learned_parameters(model):
        assert decays[id(parameter)] == (0.1 if has_decay else 0.0)
    assert "configure_optimizers" not in model.__dict__


def test_two_callbacks_have_groups_with_factors_of_their_own(tmp_path: Path) -> None:
    model = decaying()
    first = METHODS["lsq"](include=["net.3"], quantize_first_last=True, learned_lr_factor=0.5, name="first")
    second = METHODS["lsq"](include=["net.7"], quantize_first_last=True, learned_lr_factor=0.1, name="second")
    optimizer = fit(tmp_path, model, first, second).optimizers[0]
    rates = {
        id(p): group["lr"] / optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    factors = {name: rates[id(parameter)] for name, parameter, _ in learned_parameters(model)}
    assert factors == {
        "net.3.balq_log_scale_weight": pytest.approx(0.5), "net.3.balq_log_scale_input": pytest.approx(0.5),
        "net.7.balq_log_scale_weight": pytest.approx(0.1), "net.7.balq_log_scale_input": pytest.approx(0.1),
    }  # fmt: skip
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_only_the_range_of_pact_decays() -> None:
    from lightning_balq import QuantizationConfig, quantize_
    from lightning_balq.nn import LSQQuantizer

    for mode in ("pact", "lsq"):
        model = tiny_model()
        quantize_(model, QuantizationConfig(LSQQuantizer(2), activation_bits=2, activation_range=mode))
        decays = {name for name, _, decay in learned_parameters(model) if decay}
        assert decays == ({"net.3.balq_range_input", "net.7.balq_range_input"} if mode == "pact" else set())


def test_values_move_and_the_network_gets_better(tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 1:
                self.first = values(pl_module)

    keep, model = Keep(), tiny_model()
    fit(tmp_path, model, METHODS["lsq"](), keep, max_epochs=10)
    for name, value in values(model).items():
        assert not torch.equal(value, keep.first[name])
    assert sum(model.losses[-6:]) < 0.6 * sum(model.losses[:6])


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("options", [{}, {"start_step": 5, "blend_steps": 8}], ids=["at once", "blended"])
@pytest.mark.parametrize("step", [4, 5, 6, 9, 14], ids="step {}".format)
def test_resumed_fit_equals_uninterrupted_fit(tmp_path: Path, method: Any, step: int, options: dict[str, int]) -> None:
    whole, first, resumed = decaying(), decaying(), decaying(seed=1)
    fit(tmp_path, whole, method(**options))
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=step, save_top_k=-1)
    fit(tmp_path, first, method(**options), keeper, max_epochs=-1, max_steps=step, enable_checkpointing=True)
    fit(tmp_path, resumed, method(**options), ckpt_path=keeper.best_model_path)
    assert first.losses + resumed.losses == whole.losses
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_checkpoint_is_that_of_the_float_model(tmp_path: Path) -> None:
    model = decaying()
    trainer = fit(tmp_path, model, METHODS["lsq"]())
    for weights_only in (False, True):
        trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=weights_only)
        checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert checkpoint["state_dict"].keys() == decaying().state_dict().keys()
        assert_equal(checkpoint["lightning_balq"]["learned"]["state_dict"], values(model))
        loaded = Decaying.load_from_checkpoint(tmp_path / "last.ckpt", strict=True, map_location="cpu")
        assert_equal(loaded.net[3].weight.detach(), model.net[3].weight.detach())
        expected = trainer.test(model, Batches(), verbose=False)[0]["test_loss"]
        other = quiet_trainer(tmp_path, callbacks=[METHODS["lsq"]()])
        again = other.test(decaying(seed=3), Batches(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
        assert again[0]["test_loss"] == expected


def test_training_goes_on_from_a_checkpoint_of_the_float_model(tmp_path: Path) -> None:
    trainer = fit(tmp_path, decaying())
    trainer.save_checkpoint(tmp_path / "float.ckpt")
    model = decaying(seed=1)
    with pytest.warns(UserWarning, match="its checkpoint is that of a float model"):
        going_on = fit(tmp_path, model, METHODS["lsq"](), ckpt_path=tmp_path / "float.ckpt", max_epochs=4)
    assert going_on.global_step == 24 and len(model.losses) == 6
    rates = [group["lr"] for group in going_on.optimizers[0].param_groups]
    assert len(rates) > 1 and rates == pytest.approx([rates[0]] * len(rates)) and rates[0] < 0.05
    saved = torch.load(tmp_path / "float.ckpt", weights_only=True)["state_dict"]
    begin = LSQQuantization(2).weight_quantizer().initial_scale(saved["net.3.weight"])
    assert_close(model.net[3].balq_log_scale_weight.detach().exp(), begin, rtol=0.3, atol=0)  # six steps from there


def test_weights_loaded_after_the_model_was_quantized_decide_where_scales_begin(tmp_path: Path) -> None:
    class Pretrained(TinyModel):
        def on_train_start(self) -> None:
            with torch.no_grad():
                self.net[3].weight.mul_(50)

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 0:
                self.scale = pl_module.net[3].balq_log_scale_weight.detach().clone()
                self.weight = pl_module.net[3].weight.detach().clone()

    keep = Keep()
    fit(tmp_path, Pretrained(), METHODS["lsq"](), keep)
    assert_equal(keep.scale, LSQQuantization(2).weight_quantizer().initial_scale(keep.weight).log())


@each_method
def test_the_first_step_of_a_range_is_taken_from_where_it_begins(tmp_path: Path, method: Any) -> None:
    class Keep(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 0:
                self.begin = values(pl_module)
                self.slopes = {name: parameter.grad.clone() for name, parameter, _ in learned_parameters(pl_module)}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                self.after = values(pl_module)

    class Plain(TinyModel):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    keep = Keep()
    fit(tmp_path, Plain(), method(), keep)
    for name, begin in keep.begin.items():
        assert not torch.equal(begin, torch.ones_like(begin)) and keep.slopes[name].abs().max() > 0
        assert_close(keep.after[name], begin - 0.1 * keep.slopes[name])


# ---- with others -----------------------------------------------------------------------------------------------------


def test_exponential_moving_average_holds_averages_of_learned_values(tmp_path: Path) -> None:
    class Mean(Callback):
        """The average as the paper of everybody's textbook has it: the first value, then half and half."""

        def __init__(self) -> None:
            self.mean: dict[str, torch.Tensor] = {}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            present = values(pl_module)
            self.mean = {k: (self.mean[k] + v) / 2 if self.mean else v for k, v in present.items()}

    mean, model = Mean(), tiny_model()
    trainer = fit(tmp_path, model, METHODS["lsq"](), mean, *averaging())
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    averaged = torch.load(tmp_path / "ema.ckpt", weights_only=True)["lightning_balq"]["learned"]
    assert_close(averaged["state_dict"], mean.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [averaging, lambda: [StochasticWeightAveraging(0.01)]], ids=["ema", "swa"])
def test_a_copy_of_the_model_made_before_is_refused(tmp_path: Path, make: Any) -> None:
    with pytest.raises(MisconfigurationException, match="list LSQQuantization first in the callbacks of the Trainer"):
        fit(tmp_path, tiny_model(), *make(), METHODS["lsq"]())


@each_method
def test_averaging_resumes(tmp_path: Path, method: Any) -> None:
    whole, resumed = tiny_model(), tiny_model(seed=1)
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    fit(tmp_path, whole, method(), *averaging(), keeper, enable_checkpointing=True)
    fit(tmp_path, resumed, method(), *averaging(), ckpt_path=tmp_path / "step=8.ckpt")
    assert resumed.losses == whole.losses[8:]
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_sharded_strategies_are_refused(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Sharded(SingleDeviceStrategy):
        restore_checkpoint_after_setup = True

    with pytest.raises(MisconfigurationException, match="learns scales or ranges, which Sharded would shard"):
        fit(tmp_path, tiny_model(), METHODS["lsq"](), strategy=Sharded(device=torch.device("cpu")))
    fit(tmp_path, tiny_model(), UniformQuantization(2, 2, verbose=0), strategy=Sharded(device=torch.device("cpu")))


def test_manual_optimization_and_accumulation(tmp_path: Path) -> None:
    class Manual(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # returns nothing
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

    torch.manual_seed(0)
    manual, automatic = Manual(), tiny_model()
    fit(tmp_path, manual, METHODS["lsq"]())
    fit(tmp_path, automatic, METHODS["lsq"]())
    assert manual.losses == automatic.losses
    accumulating = tiny_model()
    fit(tmp_path, accumulating, METHODS["lsq"](), accumulate_grad_batches=3)
    assert all(torch.isfinite(value).all() for value in values(accumulating).values())


class Keep(Callback):
    """Writes what each rank has learned."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save([values(pl_module), pl_module.losses], self.root / f"rank{trainer.global_rank}.pt")


def test_ranks_learn_alike_also_while_nothing_is_quantized_yet(tmp_path: Path) -> None:
    callbacks = [METHODS["balanced, pact"](start_step=2), Keep(tmp_path)]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, strategy="ddp_spawn", devices=2, max_epochs=2)
    trainer.fit(tiny_model(), DataLoader(examples(), batch_size=4))
    (first, losses), (second, others) = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert losses != others and len(losses) == 6
    assert_equal(first, second)


@pytest.mark.parametrize("value", [0, -1.0, 10**400, float("inf"), float("nan")], ids=lambda value: f"{value!r:.5}")
def test_bad_factor_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="`learned_lr_factor` must be a positive number, got"):
        LSQQuantization(2, learned_lr_factor=value)


def test_factor_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="`learned_lr_factor` must be a number, got 'fast' of type str"):
        LSQQuantization(2, learned_lr_factor="fast")  # type: ignore[arg-type]  # on purpose


def test_one_bit_on_the_integer_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="use 2 bits or more"):
        LSQQuantization(1)
    assert next(iter(quantized_layers_of(LSQQuantization(1, grid="symmetric", verbose=0)))) == "net.3"


def quantized_layers_of(callback: LSQQuantization) -> list[str]:
    from lightning_balq import quantize_

    model = tiny_model()
    quantize_(model, callback._config())
    return [name for name, _, _ in quantized_layers(model)]
