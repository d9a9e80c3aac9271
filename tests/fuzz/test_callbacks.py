"""Random callbacks in a Trainer, on random networks, keep what is promised of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from lightning_balq import unquantize_
from lightning_balq.nn import quantization_state, quantized_layers
from tests.callback.tiny import Batches, quiet_trainer
from tests.fuzz.configurations import CALLBACKS, callbacks
from tests.fuzz.networks import KINDS, Network, networks
from tests.helpers import assert_equal

COUNT, MANY = 5, 40
"""Networks of each kind: in a run of all tests, and in the longer one."""


class Module(LightningModule):
    """A network as a LightningModule."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.net = network.build().net
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)  # dropout depends on the step alone
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("loss", self.loss(batch))

    def loss(self, batch: Tensor) -> Tensor:
        output = self(batch)
        return F.smooth_l1_loss(output, torch.ones_like(output))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, 0.001)


class Stream(Batches):
    """Batches in a fixed order, which resume where they stopped."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.position = batches, 0


def trains_and_resumes(root: Path, network: Network, name: str, arguments: dict[str, Any]) -> None:
    """Train on four batches, at once and in two parts; load, validate and undo what came out."""

    def fit(model: Module, steps: int, ckpt_path: Path | None = None) -> Any:
        trainer = quiet_trainer(root, callbacks=[CALLBACKS[name](**arguments)], max_epochs=-1, max_steps=steps)
        trainer.fit(model, Stream(batches), ckpt_path=ckpt_path)
        return trainer

    batches = [network.batch(index) for index in range(2)]
    held_out = Stream(batches)
    whole, first, resumed = Module(network), Module(network), Module(network)
    keys = list(whole.state_dict())
    trainer = fit(whole, 4)
    assert len(whole.losses) == 4 and all(torch.tensor(whole.losses).isfinite())
    fit(first, 2).save_checkpoint(root / "first.ckpt")
    fit(resumed, 4, root / "first.ckpt")
    assert first.losses + resumed.losses == whole.losses
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert_equal(quantization_state(resumed), quantization_state(whole))

    trainer.save_checkpoint(root / "last.ckpt", weights_only=True)
    saved = torch.load(root / "last.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == keys
    metrics = trainer.validate(whole, held_out, verbose=False)
    fresh = quiet_trainer(root, callbacks=[CALLBACKS[name](**arguments)])
    assert fresh.validate(Module(network), held_out, ckpt_path=root / "last.ckpt", verbose=False) == metrics
    float_model = Module(network)
    float_model.load_state_dict(saved["state_dict"], strict=True)
    unquantize_(whole)
    assert not any(quantized_layers(whole))
    assert_equal(dict(whole.state_dict()), dict(float_model.state_dict()))
    plain = quiet_trainer(root)
    assert plain.validate(whole, held_out, verbose=False) == plain.validate(float_model, held_out, verbose=False)


def check(root: Path, kind: str, count: int) -> int:
    """Run as many callbacks on networks of a kind; how many of them were different."""
    different = set()

    @settings(max_examples=count, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(network=networks(kind), data=st.data())
    def run(network: Network, data: st.DataObject) -> None:
        name, arguments = data.draw(callbacks(network.build()), label="callback")
        trains_and_resumes(root, network, name, arguments)
        different.add(f"{network} {name} {arguments}")

    run()
    return len(different)


@pytest.mark.filterwarnings("ignore:.*(num_workers|sanity|`training_step`|log_every_n_steps|was trained before).*")
@pytest.mark.parametrize("kind", KINDS)
def test_random_callbacks_train_resume_validate_and_undo(tmp_path: Path, kind: str) -> None:
    assert check(tmp_path, kind, COUNT) >= 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:.*(num_workers|sanity|`training_step`|log_every_n_steps|was trained before).*")
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_callbacks_train_resume_validate_and_undo(tmp_path: Path, kind: str) -> None:
    assert check(tmp_path, kind, MANY) >= 30
