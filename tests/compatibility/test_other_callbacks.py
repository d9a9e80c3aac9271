"""Beside Lightning's own callbacks: equal, bit for bit, to float models whose weights are replaced by hand."""

import warnings
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_balq import BalancedQuantization, LSQQuantization
from lightning_balq.functional import balanced_fake_quantize
from lightning_balq.nn import learned_parameters, quantized_layers
from tests.callback.tiny import Batches, TinyModel, examples, quiet_trainer, tiny_model
from tests.compatibility.by_hand import (
    INNER,
    assert_equals_by_hand,
    balanced,
    by_callback,
    fit,
    learned,
    pruned,
    quantized_by_hand,
)
from tests.compatibility.finders import finder_takes_part
from tests.helpers import assert_equal

Model = TypeVar("Model", bound=TinyModel)
EMAWeightAveraging: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)
needs_averaging = pytest.mark.skipif(EMAWeightAveraging is None, reason="needs the EMA callback of Lightning 2.6")
each_quantizer = pytest.mark.parametrize("by_hand", [balanced, learned], ids=["fixed", "learned"])
each_order = pytest.mark.parametrize("first", [True, False], ids=["ours first", "ours last"])


# ---- averages --------------------------------------------------------------------------------------------------------


def ema() -> list[Callback]:
    return [EMAWeightAveraging(decay=0.5)]


def swa() -> list[Callback]:
    return [StochasticWeightAveraging(0.01, swa_epoch_start=1)]


@needs_averaging
@pytest.mark.parametrize(("by_hand", "first"), [(balanced, True), (balanced, False), (learned, True)])
def test_exponential_average_is_quantized_for_validation(tmp_path: Path, by_hand: Any, first: bool) -> None:
    options = {"others": ema, "val_check_interval": 2}
    assert_equals_by_hand(tmp_path, by_hand, first=first, **options)  # type: ignore[arg-type]  # mixed values


@needs_averaging
def test_checkpoint_holds_the_float_average(tmp_path: Path) -> None:
    class Mean(Callback):
        """The first weights after a step, then half and half."""

        def __init__(self) -> None:
            self.means: list[Tensor] = []

        def on_train_batch_end(self, trainer: Any, pl_module: TinyModel, *_: Any) -> None:
            weight = pl_module.net[3].weight.detach().clone()
            self.means.append(self.means[-1].lerp(weight, 0.5) if self.means else weight)

    mean = Mean()
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=9, save_top_k=-1, filename="{step}")
    fit(tmp_path, tiny_model(), [by_callback(), mean, *ema(), keeper], enable_checkpointing=True)
    loaded = TinyModel.load_from_checkpoint(tmp_path / "step=9.ckpt", strict=True)
    # The average that Lightning keeps begins with the first step too, but is summed in another order.
    torch.testing.assert_close(loaded.net[3].weight.detach(), mean.means[8], rtol=1e-5, atol=1e-7)
    assert len(loaded.net[3].weight.unique()) == loaded.net[3].weight.numel()


@pytest.mark.parametrize(("by_hand", "first"), [(balanced, True), (balanced, False), (learned, True)])
def test_stochastic_weight_averages_are_those_of_the_float_weights(tmp_path: Path, by_hand: Any, first: bool) -> None:
    assert_equals_by_hand(tmp_path, by_hand, first=first, others=swa, max_epochs=3)


def test_rates_of_stochastic_averaging_may_be_given_for_each_group(tmp_path: Path) -> None:
    model = tiny_model()
    averaging = StochasticWeightAveraging([0.03, 0.02], swa_epoch_start=1, annealing_epochs=1)
    trainer = fit(tmp_path, model, [by_callback(learned), averaging], max_epochs=3)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.03, 0.02]


# ---- pruning ---------------------------------------------------------------------------------------------------------


class ZerosOfForward(Callback):
    """Asserts that what is masked, and nothing else, is exactly zero in the weight that the forward computes with."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, trainer: Any, pl_module: TinyModel, *_: Any) -> None:
        for name, layer, state in quantized_layers(pl_module):
            mask = layer._buffers.get("weight_mask")
            if mask is not None and name in INNER:
                assert torch.equal(state.quantize_weight(layer, "weight") == 0, mask == 0)
                assert (mask == 0).any()
                self.batches += 1


STRUCTURED = {"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_norm": 1, "pruning_dim": 0}
PRUNING = {
    "unstructured": {"pruning_fn": "l1_unstructured"},
    "unstructured, tickets": {"pruning_fn": "l1_unstructured", "use_lottery_ticket_hypothesis": True},
    "structured": STRUCTURED,
}


def pruning(kind: str = "unstructured", **options: Any) -> ModelPruning:
    class Weights(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
            return [(module, name) for module, name in parameters_to_prune if getattr(module, name).dim() > 1]

    defaults = {"amount": 0.3, "use_lottery_ticket_hypothesis": False, "parameter_names": ["weight"]}
    return Weights(**{**defaults, **PRUNING[kind], **options})  # type: ignore[arg-type]  # mixed values


@each_order
@pytest.mark.parametrize("kind", PRUNING)
def test_pruned_weights_stay_exactly_zero(tmp_path: Path, kind: str, first: bool) -> None:
    seen = ZerosOfForward()
    others = [pruning(kind), seen]
    model = tiny_model()
    fit(tmp_path, model, [by_callback(), *others] if first else [*others, by_callback()], max_epochs=3)
    assert seen.batches == 2 * 2 * 6
    reference = quantized_by_hand(tiny_model(), by_hand=pruned)
    fit(tmp_path, reference, [pruning(kind)], max_epochs=3)
    assert model.losses == reference.losses
    assert_equal(dict(model.state_dict()), dict(reference.state_dict()))


def test_pruned_weights_of_a_learned_scale(tmp_path: Path) -> None:
    assert_equals_by_hand(tmp_path, learned, others=lambda: [pruning()], max_epochs=3)


def test_pruned_weights_stay_zero_once_pruning_is_permanent(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = fit(tmp_path, model, [by_callback(), pruning()])
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    weight = model.net[7].weight.detach()
    assert "weight_mask" not in model.net[7]._buffers and (weight == 0).any()
    levels = torch.where(weight == 0, 0.0, balanced_fake_quantize(weight, 2))
    loss = trainer.validate(model, Batches(), verbose=False)
    for loaded, callbacks in ((tiny_model(seed=5), [by_callback()]), (tiny_model(seed=6), [pruning(), by_callback()])):
        other = quiet_trainer(tmp_path, callbacks=callbacks)
        again = other.validate(loaded, Batches(), ckpt_path=tmp_path / "pruned.ckpt", verbose=False)
        assert again == loss
        state = next(state for name, _, state in quantized_layers(loaded) if name == "net.7")
        assert_equal(state.quantize_weight(loaded.net[7], "weight").detach(), levels)


def test_weights_that_become_zero_in_training_are_quantized(tmp_path: Path) -> None:
    model = tiny_model()
    fit(tmp_path, model, [by_callback()])
    layer = model.net[7]
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    state = next(state for name, _, state in quantized_layers(model) if name == "net.7")
    assert_equal(state.quantize_weight(layer, "weight"), balanced_fake_quantize(layer.weight, 2))
    assert (state.quantize_weight(layer, "weight") != 0).all()
    model.load_state_dict(model.state_dict())
    assert (state.quantize_weight(layer, "weight")[:, ::2] == 0).all()


def test_pruning_resumes_as_the_float_model_does(tmp_path: Path) -> None:
    resumed = []
    for by_hand in (False, True):
        ours = [] if by_hand else [by_callback()]
        make = lambda seed: quantized_by_hand(tiny_model(seed), by_hand=pruned) if by_hand else tiny_model(seed)  # noqa: B023, E731  # used at once
        keeper = ModelCheckpoint(tmp_path / str(by_hand), every_n_train_steps=8, save_top_k=-1, filename="{step}")
        fit(tmp_path, make(0), [*ours, pruning(), keeper], enable_checkpointing=True)
        model = make(1)
        fit(tmp_path, model, [*ours, pruning()], ckpt_path=tmp_path / str(by_hand) / "step=8.ckpt", max_epochs=3)
        assert len(model.losses) == 10
        resumed.append((model.losses, dict(model.state_dict())))
    assert_equal(*resumed)


# ---- freezing --------------------------------------------------------------------------------------------------------


class Tuned(TinyModel):
    """A backbone and a head, of each of which one layer is quantized."""

    decay = 0.0

    def __init__(self) -> None:
        super().__init__()
        net = self.net
        del self.net
        self.backbone, self.head = net[:7], net[7:]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, 0.05, momentum=0.9, weight_decay=self.decay)


class Decayed(Tuned):
    """The same with weight decay."""

    decay = 0.1


TUNED = ("backbone.3", "head.7")


def tuning() -> list[Callback]:
    return [BackboneFinetuning(1, lambda _: 1.5, backbone_initial_ratio_lr=0.1, should_align=False)]


@each_order
@each_quantizer
def test_backbone_is_frozen_and_joins_later(tmp_path: Path, by_hand: Any, first: bool) -> None:
    assert_equals_by_hand(tmp_path, by_hand, first=first, make=Tuned, names=TUNED, others=tuning, max_epochs=4)


def learned_values(model: TinyModel, part: str) -> dict[str, Tensor]:
    found = {name: value.detach().clone() for name, value, _ in learned_parameters(model) if name.startswith(part)}
    assert found
    return found


class Watch(Callback):
    """Keeps the groups of the optimizer and the learned values of the backbone, after the first batch of each epoch."""

    def __init__(self) -> None:
        self.groups: list[list[tuple[Any, ...]]] = []
        self.values: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            own = {id(parameter) for _, parameter, _ in learned_parameters(pl_module)}
            self.groups.append(
                [
                    (round(group["lr"], 6), group["weight_decay"], {id(p) in own for p in group["params"]})
                    for group in trainer.optimizers[0].param_groups
                ]
            )
            self.values.append(learned_values(pl_module, "backbone"))


@each_order
def test_scales_of_a_backbone_move_only_once_it_is_trained_and_never_decay(tmp_path: Path, first: bool) -> None:
    watch, model = Watch(), seeded(Decayed)
    ours = LSQQuantization(2, 2, activation_range="lsq", learned_lr_factor=0.5, verbose=0)
    fit(tmp_path, model, [ours, *tuning(), watch] if first else [*tuning(), ours, watch], max_epochs=4)
    head = [(0.05, 0.1, {False}), (0.025, 0.0, {True})]
    assert watch.groups == [
        head,
        [*head, (0.0025, 0.0, {True}), (0.005, 0.1, {False})],
        [*head, (0.00375, 0.0, {True}), (0.0075, 0.1, {False})],
        [*head, (0.005625, 0.0, {True}), (0.01125, 0.1, {False})],
    ]
    frozen, unfrozen, *_ = watch.values
    for name, value in learned_values(model, "backbone").items():
        assert not torch.equal(value, unfrozen[name])
        assert torch.equal(frozen[name], begun(model, name, frozen[name]))


def begun(model: TinyModel, name: str, value: Tensor) -> Tensor:
    """What a scale of a frozen weight is: where it began."""
    if not name.endswith("weight"):
        return value
    weight = seeded(Decayed).backbone[3].weight
    return LSQQuantization(2).weight_quantizer().initial_scale(weight.detach()).log()  # type: ignore[attr-defined]  # of LSQ


def seeded(kind: type[Model], seed: int = 0) -> Model:
    seed_everything(seed, verbose=False)
    return kind()


def resumed_tuning(root: Path, ours: list[Callback], model: TinyModel, other: TinyModel, steps: int) -> list[float]:
    """Losses of a run that stops after ``steps`` steps and goes on in ``other``."""
    keeper = ModelCheckpoint(root, every_n_train_steps=steps, save_top_k=-1, filename="{step}")
    options = {"max_epochs": -1, "max_steps": steps, "enable_checkpointing": True}
    fit(root, model, [*ours, *tuning(), keeper], **options)
    fit(root, other, [*ours, *tuning()], max_epochs=4, ckpt_path=root / f"step={steps}.ckpt")
    return model.losses + other.losses


def test_finetuning_resumes_from_before_the_backbone_joins(tmp_path: Path) -> None:
    ours = [LSQQuantization(2, 2, activation_range="lsq", verbose=0)]
    whole, other = seeded(Decayed), seeded(Decayed, 1)
    fit(tmp_path, whole, [*ours, *tuning()], max_epochs=4)
    assert resumed_tuning(tmp_path, [*ours], seeded(Decayed), other, 3) == whole.losses
    assert_equal(dict(other.state_dict()), dict(whole.state_dict()))


@each_quantizer
def test_finetuning_resumes_from_later_as_the_float_model_does(tmp_path: Path, by_hand: Any) -> None:
    # Lightning itself leaves the backbone frozen there, so that neither equals the run without interruption.
    models = [seeded(Tuned), seeded(Tuned, 1)]
    losses = resumed_tuning(tmp_path / "ours", [by_callback(by_hand)], *models, 15)
    by_hands = [quantized_by_hand(seeded(Tuned, seed), TUNED, by_hand) for seed in (0, 1)]
    assert losses == resumed_tuning(tmp_path / "by hand", [], *by_hands, 15)
    assert len(losses) == 24


@pytest.mark.parametrize("when", ["before", "after"])
def test_scales_of_frozen_layers_do_not_move(tmp_path: Path, when: str) -> None:
    class Frozen(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            if when == "before":
                self.net[:7].requires_grad_(False)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            if when == "after":
                self.net[:7].requires_grad_(False)
            return torch.optim.Adam([parameter for parameter in self.parameters() if parameter.requires_grad], 0.01)

    class Begin(Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 0:
                self.values = learned_values(pl_module, "net.3")

    torch.manual_seed(0)
    begin, model = Begin(), Frozen()
    ours = LSQQuantization(2, 2, activation_range="lsq", verbose=0)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        fit(tmp_path, model, [ours, begin])
    assert not any("learns" in str(warning.message) for warning in raised)  # nothing is amiss in a frozen layer
    # The first batch still decides where the range of an input begins, right after its backward pass.
    assert_equal(learned_values(model, "net.3"), begin.values)
    assert not model.net[3].balq_log_scale_input.requires_grad
    assert model.net[7].balq_log_scale_weight.requires_grad


def test_scale_that_no_optimizer_trains_is_named(tmp_path: Path) -> None:
    class Listed(TinyModel):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for name, p in self.named_parameters() if "balq" not in name], 0.01)

    with pytest.warns(UserWarning, match=r"no optimizer, and stays as it is: net\.3\.balq_log_scale_weight, net\.7\."):
        fit(tmp_path, Listed(), [by_callback(learned)])


# ---- others ----------------------------------------------------------------------------------------------------------


@each_order
@each_quantizer
def test_accumulation_that_changes_by_epoch(tmp_path: Path, by_hand: Any, first: bool) -> None:
    others: Any = lambda: [GradientAccumulationScheduler({0: 3, 1: 2})]  # noqa: E731  # one use
    assert_equals_by_hand(tmp_path, by_hand, first=first, others=others, max_epochs=3)


def named_rates(root: Path, model: TinyModel) -> list[str]:
    monitor = LearningRateMonitor("step")
    callbacks = [by_callback(learned), monitor]
    fit(root, model, callbacks, logger=CSVLogger(root), log_every_n_steps=1)
    assert all(len(rates) == 12 for rates in monitor.lrs.values())
    return sorted(monitor.lrs)


def test_monitor_names_the_groups_of_what_is_learned_after_those_they_come_from(tmp_path: Path) -> None:
    class Named(TinyModel):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = [
                {"params": list(self.net[:7].parameters()), "name": "body"},
                {"params": list(self.net[7:].parameters()), "name": "head", "lr": 0.1},
            ]
            return torch.optim.SGD(groups, 0.01)

    assert named_rates(tmp_path, tiny_model()) == ["lr-Adam/pg1", "lr-Adam/pg1-learned"]
    assert named_rates(tmp_path, Named()) == [f"lr-SGD/{n}" for n in ("body", "body-learned", "head", "head-learned")]


def test_monitor_names_one_group_as_ever_if_nothing_is_learned(tmp_path: Path) -> None:
    monitor = LearningRateMonitor("step")
    fit(tmp_path, tiny_model(), [by_callback(), monitor], logger=CSVLogger(tmp_path))
    assert list(monitor.lrs) == ["lr-Adam"]


def test_summaries_show_the_layers_of_the_float_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning.pytorch.utilities.model_summary import summarize

    model = tiny_model()
    expected = str(summarize(model, max_depth=3))
    fit(tmp_path, model, [by_callback(), RichModelSummary(max_depth=3)], enable_model_summary=True)
    assert str(summarize(model, max_depth=3)) == expected
    printed = capsys.readouterr().out
    assert "net.3" in printed and "Conv2d" in printed and "Quantized" not in printed
    fit(tmp_path, tiny_model(), [by_callback(learned), ModelSummary(max_depth=3)], enable_model_summary=True)


MORE: dict[str, Any] = {
    "timer": lambda: [Timer("00:01:00:00")],
    "device stats": lambda: [DeviceStatsMonitor(cpu_stats=False)],
    "rich progress bar": lambda: [RichProgressBar()],
}


@each_order
@pytest.mark.parametrize("kind", MORE)
def test_callbacks_that_only_watch(tmp_path: Path, kind: str, first: bool) -> None:
    bar = kind == "rich progress bar"
    logger = CSVLogger(tmp_path) if kind == "device stats" else False
    options = {"enable_progress_bar": bar, "logger": logger}
    assert_equals_by_hand(tmp_path, first=first, others=MORE[kind], **options)  # type: ignore[arg-type]  # mixed values


class Sized(TinyModel):
    """With a learning rate and a batch size that a callback may look for."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.01, 4

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(examples(), batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


FINDERS: dict[str, Any] = {
    "learning rate": lambda: LearningRateFinder(num_training_steps=5, early_stop_threshold=None, update_attr=False),
    "batch size": lambda: BatchSizeFinder(steps_per_trial=2, max_trials=2, init_val=4),
}
QUANTIZED: dict[str, Any] = {
    "fixed": lambda: BalancedQuantization(2, 2, verbose=0),
    "lsq": lambda: LSQQuantization(2, 2, activation_range="lsq", verbose=0),
    "pact": lambda: BalancedQuantization(2, 2, scale="learned", activation_range="pact", verbose=0),
    "lsq, later": lambda: LSQQuantization(2, 2, activation_range="lsq", start_step=3, verbose=0),
}


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("finder", FINDERS)
def test_training_after_a_finder_is_training_without_it(tmp_path: Path, finder: str, method: str) -> None:
    if finder == "learning rate" and finder_takes_part():
        pytest.skip("this Lightning counts steps of its finder as steps of the training")
    found, plain = (seeded(Sized) for _ in range(2))
    quiet_trainer(tmp_path, callbacks=[QUANTIZED[method](), FINDERS[finder]()], max_epochs=2).fit(found)
    plain.batch_size = found.batch_size
    quiet_trainer(tmp_path, callbacks=[QUANTIZED[method]()], max_epochs=2).fit(plain)
    assert len(found.losses) > len(plain.losses) > 0
    assert found.losses[-len(plain.losses) :] == plain.losses
    assert_equal(dict(found.state_dict()), dict(plain.state_dict()))
