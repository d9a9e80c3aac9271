"""Trains on two processes in every way that the tests of distributed training ask for; they read what it writes.

One program for all of them, as starting two processes takes longer than everything that they do. Lightning starts the
second one by running this file again.

Run: python tests/compatibility/ranks.py FOLDER
"""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from packaging.version import Version
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from lightning_balq import BalancedQuantization, LSQQuantization, QuantizationConfig, quantize_
from lightning_balq.nn import BalancedQuantizer, LSQQuantizer, activation_quantizers, quantized_layers
from tests.callback.tiny import TinyModel, examples, quiet_trainer

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch 2.5
    from torch.distributed._composable.fsdp import fully_shard

WITHOUT_FSDP2 = "without FSDP2"
"""Name of a file that says why results are missing."""

CHANNELS: dict[str, Any] = {"granularity": "per_channel", "scale": "mean"}


class Network(TinyModel):
    """Without batch norm (whose statistics are those of one rank) and Adam (which divides by small gradients)."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1], self.net[4] = nn.Identity(), nn.Identity()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.5)


class Unused(Network):
    """With a quantized layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.last = nn.Linear(16, 16), nn.Linear(16, 3)


class Sharded(Network):
    """Each layer sharded by FSDP2, where Lightning asks for it; quantized before by its own hand, if told to."""

    def __init__(self, config: QuantizationConfig | None = None) -> None:
        super().__init__()
        self.config = config

    def configure_model(self) -> None:
        if self.config is not None:
            quantize_(self, self.config)
        for layer in self.net:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


class Parallel(Network):
    """With a layer whose weight stays divided among ranks in its forward."""

    def configure_model(self) -> None:
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], {"7": ColwiseParallel()})


class Poison(Callback):
    """Makes a weight NaN that the first rank alone holds."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 3 and trainer.global_rank == 0:  # before the step that is recorded
            with torch.no_grad():
                pl_module.net[7].weight.to_local()[0, 0] = torch.nan


class Keep(Callback):
    """What a rank holds at the end of training; weights whole."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        layers = list(quantized_layers(pl_module))
        self.kept = {
            "losses": pl_module.losses,
            "weights": {name: whole(parameter) for name, parameter in pl_module.named_parameters()},
            "codes": {name: state.codes(layer, "weight") for name, layer, state in layers},
            "ranges": [quantizer.range for quantizer in activation_quantizers(pl_module)],
            "signed": [quantizer.signed for quantizer in activation_quantizers(pl_module)],
            "batches": [quantizer.batches for quantizer in activation_quantizers(pl_module)],
            "local": [getattr(layer.weight, "_local_tensor", layer.weight).numel() for _, layer, _ in layers],
            "records": {
                key: float(value)
                for key, value in trainer.callback_metrics.items()
                if key.startswith("balq/") and "overhead" not in key
            },
        }


def whole(parameter: Tensor) -> Tensor:
    gathered: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return gathered.detach().clone()


class Batches:
    """Indices of two examples for each rank; at last, if uneven, of three for the first and of one for the second."""

    def __init__(self, rank: int, *, uneven: bool) -> None:
        self.batches = [[4 * step + rank, 4 * step + 2 + rank] for step in range(6)]
        if uneven:
            self.batches[-1] = [[20, 21, 22], [23]][rank]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Data(LightningDataModule):
    """The examples, four at a time, of which each rank gets its own."""

    def __init__(self, uneven: bool) -> None:
        super().__init__()
        self.uneven = uneven

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        sampler: Any = Batches(self.trainer.global_rank, uneven=self.uneven)
        return DataLoader(examples(), batch_sampler=sampler)


def sharded(*, distributed: bool = True) -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=distributed)


class Program:
    def __init__(self, root: Path) -> None:
        self.root = root

    def fit(
        self,
        name: str,
        model: TinyModel,
        strategy: Any,
        *callbacks: Callback,
        uneven: bool = False,
        sync_batchnorm: bool = False,
        ckpt_path: Path | None = None,
        quantization: Any = BalancedQuantization,
        **options: Any,
    ) -> None:
        """Train and write what the rank holds to a file of this name."""
        keep = Keep()
        quantization = quantization(2, 2, verbose=0, record_every_n_steps=4, **options)
        trainer = quiet_trainer(
            self.root, callbacks=[quantization, keep, *callbacks], strategy=strategy, devices=2, max_epochs=2,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            use_distributed_sampler=False, sync_batchnorm=sync_batchnorm,
        )  # fmt: skip
        trainer.fit(model, datamodule=Data(uneven), ckpt_path=ckpt_path)
        torch.save(keep.kept, self.root / f"{name}.rank{trainer.global_rank}.pt")

    def refuse(self, name: str, model: TinyModel, *others: Any, **options: Any) -> None:
        """Write the message of the error, and what the model has by then."""
        try:
            self.fit(name, model, *others, **options)
        except (MisconfigurationException, ValueError) as error:
            kept = {
                "message": str(error),
                "quantized": [name for name, _, _ in quantized_layers(model)],
                "hooks": [key for key, value in vars(model).items() if isinstance(value, functools.partial)],
                "steps": len(model.losses),
            }
            torch.save(kept, self.root / f"{name}.rank{model.trainer.global_rank}.pt")

    def run(self) -> None:
        self.fit("ddp", network(), "ddp")
        self.fit("ddp by channel", network(), "ddp", **CHANNELS)
        self.fit("unit", network(), "ddp", activation_range="unit")
        self.fit("unused", network(Unused), DDPStrategy(find_unused_parameters=True), exclude=["net.9"])
        self.fit("static", network(), DDPStrategy(static_graph=True))
        self.fit("uneven", network(), "ddp", uneven=True)
        self.refuse("sync", network(TinyModel), "ddp", sync_batchnorm=True)
        if not can_shard():
            (self.root / WITHOUT_FSDP2).touch()
            return
        own = QuantizationConfig(BalancedQuantizer(2, **CHANNELS), activation_bits=2)
        for name, arguments, options, distributed in (
            ("fsdp", (), {}, True),
            ("fsdp by channel", (own,), CHANNELS, False),
        ):
            keeper = ModelCheckpoint(self.root / name, every_n_train_steps=6, save_top_k=-1, filename="{step}")
            strategy, again = sharded(distributed=distributed), sharded(distributed=distributed)
            self.fit(name, network(Sharded, *arguments), strategy, keeper, **options)
            saved, other = self.root / name / "step=6.ckpt", network(Sharded, *arguments, seed=1)
            self.fit(f"{name} resumed", other, again, ckpt_path=saved, **options)
        learning = functools.partial(LSQQuantization, activation_range="lsq")
        self.refuse("learned", network(Sharded), sharded(), quantization=learning)
        own = QuantizationConfig(LSQQuantizer(2), activation_bits=2, activation_range="lsq")
        self.refuse("learned by hand", network(Sharded, own), sharded(), quantization=learning)
        self.refuse("poisoned", network(Sharded), sharded(), Poison())
        self.refuse("parallel", network(Parallel), ModelParallelStrategy(1, 2), activation_range="unit")


def can_shard() -> bool:
    """Whether FSDP2 runs on a CPU, and gloo can reduce and scatter, as it does; neither could be always."""
    if Version(torch.__version__) < Version("2.6"):
        return False
    try:
        torch.distributed.reduce_scatter_tensor(torch.zeros(1), torch.zeros(2))
    except RuntimeError:
        return False
    return True


def network(kind: type[TinyModel] = Network, *arguments: Any, seed: int = 0) -> Any:
    seed_everything(seed, verbose=False)
    return kind(*arguments)


if __name__ == "__main__":
    Program(Path(sys.argv[1])).run()
