"""Optimizers and training loops of all kinds: equal, bit for bit, to float models with weights replaced by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_balq import BalancedQuantization, LSQQuantization
from lightning_balq.nn import activation_quantizers
from tests.callback.tiny import TinyModel, tiny_model, tiny_net
from tests.compatibility.by_hand import assert_equals_by_hand, balanced, fit, learned
from tests.helpers import assert_equal

each_quantizer = pytest.mark.parametrize("by_hand", [balanced, learned], ids=["fixed", "learned"])


class With(TinyModel):
    """With another optimizer; learned scales come last, as in the groups that we make."""

    optimizer: Any = torch.optim.SGD
    options: Any = {"lr": 0.1}  # noqa: RUF012  # not changed

    def configure_optimizers(self) -> Any:
        named = sorted(self.named_parameters(), key=lambda item: "scale" in item[0])
        return self.optimizer([parameter for _, parameter in named], **self.options)


def using(kind: Any, **chosen: Any) -> type[With]:
    class Chosen(With):
        optimizer = kind
        options = chosen

    return Chosen


OPTIMIZERS = {
    "SGD fused": using(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "Adam fused": using(torch.optim.Adam, lr=0.01, fused=True),
    "AdamW fused": using(torch.optim.AdamW, lr=0.01, weight_decay=0.0, fused=True),
    "Adam foreach": using(torch.optim.Adam, lr=0.01, foreach=True),
    "RMSprop": using(torch.optim.RMSprop, lr=0.01),
    "LBFGS": using(torch.optim.LBFGS, lr=0.1, max_iter=3),
}


@each_quantizer
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_steps_are_those_of_the_float_model(tmp_path: Path, kind: str, by_hand: Any) -> None:
    assert_equals_by_hand(tmp_path, by_hand, make=OPTIMIZERS[kind])


@each_quantizer
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"gradient_clip_val": 0.1, "accumulate_grad_batches": 4},
        {"detect_anomaly": True},
        {"deterministic": True},
    ],
    ids=str,
)
def test_trainer_options_do_what_they_do_to_the_float_model(
    tmp_path: Path, options: dict[str, Any], by_hand: Any
) -> None:
    model, *_ = assert_equals_by_hand(tmp_path, by_hand, make=With, **options)
    if {"accumulate_grad_batches", "gradient_clip_val"} & options.keys():
        plain, *_ = assert_equals_by_hand(tmp_path, by_hand, make=With)
        assert model.losses != plain.losses


class Zeros(TinyModel):
    """Sets gradients to zero."""

    set_to_none = False

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=self.set_to_none)


class Nones(Zeros):
    """Sets gradients to None."""

    set_to_none = True


@each_quantizer
@pytest.mark.parametrize("kind", [Zeros, Nones])
def test_gradients_are_cleared_in_either_way(tmp_path: Path, kind: Any, by_hand: Any) -> None:
    assert_equals_by_hand(tmp_path, by_hand, make=kind, accumulate_grad_batches=2)


# ---- manual optimization ---------------------------------------------------------------------------------------------


class Manual(TinyModel):
    """Manual optimization; clears gradients after the step."""

    set_to_none = True

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # returns nothing
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.5, "value")
            optimizer.step()
            optimizer.zero_grad(set_to_none=self.set_to_none)


class ManualZeros(Manual):
    """The same with zeros."""

    set_to_none = False


class Adversaries(TinyModel):
    """A network that tells examples from those that another one makes, each with an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker = torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 64)
        )
        self.judge = tiny_net()
        self.net = torch.nn.Identity()  # type: ignore[assignment]  # not used

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(x)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # returns nothing
        first, second = self.optimizers()  # type: ignore[misc,union-attr]  # a list here
        real, noise = batch[0], torch.linspace(-1, 1, 16).reshape(4, 4) + batch_idx
        self.toggle_optimizer(first)
        made = self.maker(noise).reshape(real.shape)
        loss = F.cross_entropy(self.judge(made), torch.ones(4, dtype=torch.long))
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        made = self.maker(noise).reshape(real.shape).detach()
        answers = self.judge(torch.cat([real, made]))
        other = F.cross_entropy(answers, torch.arange(8) // 4)
        second.zero_grad()
        self.manual_backward(other)
        second.step()
        self.untoggle_optimizer(second)
        self.losses += [loss.item(), other.item()]

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.maker.parameters(), 0.01), torch.optim.SGD(self.judge.parameters(), 0.05)]


class Sharpness(TinyModel):
    """Sharpness-aware minimisation: the gradient is that of a second forward at weights that were moved."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # returns nothing
        optimizer: Any = self.optimizers()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        moved = [(p, 0.05 * p.grad.sign()) for p in self.parameters() if p.grad is not None]
        for parameter, move in moved:
            parameter.data.add_(move)
        optimizer.zero_grad()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for parameter, move in moved:
            parameter.data.sub_(move)
        optimizer.step()
        optimizer.zero_grad()
        self.losses.append(loss.item())


@each_quantizer
@pytest.mark.parametrize("kind", [Manual, ManualZeros, Sharpness])
def test_manual_optimization(tmp_path: Path, kind: Any, by_hand: Any) -> None:
    assert_equals_by_hand(tmp_path, by_hand, make=kind)


@each_quantizer
def test_two_networks_with_an_optimizer_each(tmp_path: Path, by_hand: Any) -> None:
    names = ("maker.2", "maker.4", "judge.0", "judge.3", "judge.7")
    assert_equals_by_hand(tmp_path, by_hand, make=Adversaries, names=names)


def test_two_optimizers_hold_what_their_layers_learn_and_nothing_else(tmp_path: Path) -> None:
    model = Adversaries()
    callback = LSQQuantization(2, 2, activation_range="lsq", verbose=0)
    optimizers = fit(tmp_path, model, [callback]).optimizers
    for part, optimizer in zip((model.maker, model.judge), optimizers, strict=True):
        held = [{id(parameter) for parameter in group["params"]} for group in optimizer.param_groups]
        own = {id(parameter) for name, parameter in part.named_parameters() if "balq" in name}
        assert held == [{id(parameter) for parameter in part.parameters()} - own, own]


# ---- graphs and modes ------------------------------------------------------------------------------------------------


class Recomputed(TinyModel):
    """Computes its activations again in the backward pass."""

    use_reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_() if torch.is_grad_enabled() else x
        hidden = checkpoint(self.net[:6], x, use_reentrant=self.use_reentrant)
        result: Tensor = checkpoint(self.net[6:], hidden, use_reentrant=self.use_reentrant)
        return result


class Reentrant(Recomputed):
    """The same, in the older way."""

    use_reentrant = True


@each_quantizer
@pytest.mark.parametrize("kind", [Recomputed, Reentrant])
def test_activation_checkpointing(tmp_path: Path, kind: Any, by_hand: Any) -> None:
    assert_equals_by_hand(tmp_path, by_hand, make=kind)


METHODS: dict[str, Any] = {
    "observed": lambda: BalancedQuantization(2, 2, verbose=0),
    "lsq": lambda: LSQQuantization(2, 2, activation_range="lsq", verbose=0),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Recomputed, Reentrant])
def test_activation_checkpointing_changes_no_range(tmp_path: Path, kind: Any, method: str) -> None:
    class Plain(kind):  # type: ignore[misc,valid-type]  # a parameter
        """Runs the batch norm twice, as checkpointing does, and nothing else."""

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    class Still(Callback):
        """Batch norm would count recomputed batches twice."""

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            for layer in (pl_module.net[1], pl_module.net[4]):
                layer.momentum = 0.0

    trained = []
    for cls in (kind, Plain):
        torch.manual_seed(0)
        model = cls()
        fit(tmp_path, model, [METHODS[method](), Still()])
        ranges = [quantizer.range for quantizer in activation_quantizers(model)]
        weights = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
        trained.append((model.losses, ranges, weights))
    assert_equal(*trained)


@each_quantizer
@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_between_steps(tmp_path: Path, inference_mode: bool, by_hand: Any) -> None:
    assert_equals_by_hand(tmp_path, by_hand, inference_mode=inference_mode, val_check_interval=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_between_steps_changes_no_training(tmp_path: Path, inference_mode: bool, method: str) -> None:
    trained = []
    for limit in (1.0, 0):
        model = tiny_model()
        options = {"inference_mode": inference_mode, "val_check_interval": 1, "limit_val_batches": limit}
        fit(tmp_path, model, [METHODS[method]()], **options)
        trained.append((model.losses, dict(model.state_dict()), [q.range for q in activation_quantizers(model)]))
    assert_equal(*trained)
