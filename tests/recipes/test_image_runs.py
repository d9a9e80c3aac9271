"""Image modules in a Trainer: with two processes, and resumed."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import Version
from torch import nn

from recipes.data.digits import Digits
from recipes.data.imagenet import ImageNet
from recipes.data.images import ImageModule
from tests.recipes.pictures import numbers, write_folders, write_parquet
from tests.recipes.tiny import quiet_trainer

pytestmark = pytest.mark.usefixtures("own_datasets", "no_seed")
in_an_epoch = pytest.mark.skipif(Version(lightning.__version__) < Version("2.5"), reason="loses the place in an epoch")

TRAIN, VALIDATION = 23, 21
"""Of a batch of 4 of two processes, the last ones have 3 and 1 images: fewer than both need."""


class Witness(LightningModule):
    """Trains nothing worth it, and writes down which pictures each step of a process has seen.

    Batch norm makes processes wait for each other in validation too.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.net = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(numbers(batch[0]))
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["val"].append(numbers(batch[0]))
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def on_train_end(self) -> None:
        torch.save(self.seen, self.root / f"rank{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "folders": (write_folders, {}),
    "stream, a file for each process": (write_parquet, {"streaming": True}),
    "stream of three files": (write_parquet, {"streaming": True, "files": 3}),
}


def of_a_batch(steps: list[list[int]]) -> list[list[int]]:
    return [sorted(step) for step in steps]


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_take_every_image_once_and_share_the_batches_of_one(tmp_path: Path, form: str) -> None:
    write, options = FORMS[form]
    files = {"files": options["files"]} if "files" in options else {}
    root = write(tmp_path / "images", TRAIN, VALIDATION, **files)

    def fit(**trainer: Any) -> None:
        data = ImageNet(
            str(root), options.get("streaming", False), 4, 4, workers=0, crop_size=4, resize_size=4, shuffle_buffer=4
        )
        quiet_trainer(tmp_path, max_epochs=2, **trainer).fit(Witness(tmp_path), datamodule=data)

    fit(strategy="ddp_spawn", devices=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    fit()
    whole = torch.load(tmp_path / "rank0.pt", weights_only=True)
    for part, count in (("train", TRAIN), ("val", VALIDATION)):
        steps = [a + b for a, b in zip(first[part], second[part], strict=True)]  # as many in both
        half = len(steps) // 2
        for epoch in (steps[:half], steps[half:]):
            assert sorted(number for step in epoch for number in step) == list(range(count))
        assert min(len(step) for step in first[part] + second[part]) == 1
        # all but the last two, between which images may be moved, are the steps of one process
        expected = whole[part][:half]
        assert of_a_batch(steps[: half - 2]) == of_a_batch(expected[:-2])
        assert of_a_batch([steps[half - 2] + steps[half - 1]]) == of_a_batch([expected[-2] + expected[-1]])


class Keeper(LightningModule):
    """Keeps the training images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 10)
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch[0])
        return nn.functional.cross_entropy(self.net(batch[0].mean((1, 2, 3))[:, None]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def digits_module(root: Path) -> ImageModule:
    return Digits(batch_size=200)


def imagenet_module(root: Path, **options: Any) -> ImageModule:
    images = root / "images"
    if not images.exists():
        write_parquet(images, TRAIN, VALIDATION)
    return ImageNet(str(images), batch_size=4, eval_batch_size=4, workers=0, crop_size=4, resize_size=4, **options)


def stream_module(root: Path) -> ImageModule:
    return imagenet_module(root, streaming=True, shuffle_buffer=5)


@pytest.mark.parametrize("make", [digits_module, imagenet_module, stream_module])
@pytest.mark.parametrize(
    ("step", "limit"),
    [pytest.param(8, 1.0, marks=in_an_epoch), (6, 1.0), pytest.param(7, 5, marks=in_an_epoch), (5, 5)],
)
@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The dirpath has", "ignore:.* using `ckpt_path`")
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path: Path, make: Any, step: int, limit: float) -> None:
    """In the middle of an epoch and at its end, with epochs of 6 batches and with epochs that end after 5 of them."""

    def fit(seed: int, path: str | None = None, **options: Any) -> list[torch.Tensor]:
        seed_everything(seed, verbose=False)
        model = Keeper()
        defaults = {"max_epochs": 3, "limit_train_batches": limit, "limit_val_batches": 0}
        quiet_trainer(tmp_path, enable_checkpointing=True, **defaults | options).fit(
            model, datamodule=make(tmp_path), ckpt_path=path
        )
        return model.seen

    whole = fit(0)
    often = {"save_on_train_epoch_end": True} if step in (5, 6) else {"every_n_train_steps": step}
    keeper = ModelCheckpoint(tmp_path, save_top_k=-1, **often)
    before = fit(0, callbacks=[keeper], max_epochs=-1, max_steps=step)
    after = fit(1, keeper.best_model_path)  # with the seed of the first run, which the checkpoint holds
    assert len(before) == step
    assert len(whole) == 3 * (6 if limit == 1.0 else 5)
    for one, other in zip(before + after, whole, strict=True):
        assert torch.equal(one, other)
