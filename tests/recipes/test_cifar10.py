import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from torch.testing import assert_close

from recipes.data import cifar10
from recipes.data.cifar10 import Cifar10
from recipes.data.encoded import UnreadableImage
from tests.recipes.pictures import encoded, noise, table, truncated

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("own_datasets", "no_seed")

NAMES = [f"class {number}" for number in range(10)]
COUNTS = {"train": 25, "test": 13}


def rows(split, image="img", **options):
    pictures = [noise(32, 32, number) for number in range(COUNTS[split])]
    labels = options.pop("labels", [number % 10 for number in range(COUNTS[split])])
    contents = options.pop("contents", [encoded(picture) for picture in pictures])
    return table(contents, labels, image=image, names=options.pop("names", NAMES))


def write(folder, **options):
    for split in COUNTS:
        rows(split, **options).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


def ready(path, stage="fit", **options):
    data = Cifar10(str(path), **{"batch_size": 4, "eval_batch_size": 5, **options})
    data.prepare_data()
    data.setup(stage)
    return data


def gathered(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize("inside", ["", "plain_text"])
def test_evaluation_equals_pillow_and_numpy_exactly(tmp_path, image, inside):
    write(tmp_path / inside, image=image)
    data = ready(tmp_path)
    assert data.classes == 10
    pixels = np.stack([np.asarray(noise(32, 32, number)) for number in range(13)]).astype(np.float32) / np.float32(255)
    expected = (pixels - np.float32([0.4914, 0.4822, 0.4465])) / np.float32([0.2470, 0.2435, 0.2616])
    for loader in (data.val_dataloader(), data.test_dataloader()):
        images, labels = gathered(loader)
        assert_close(images, torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=0, atol=0)
        assert labels.tolist() == [number % 10 for number in range(13)] and labels.dtype == torch.int64


def test_training_takes_every_image_once_in_another_order_in_each_epoch(tmp_path):
    loader = ready(write(tmp_path)).train_dataloader()
    assert len(loader) == 7
    epochs = []
    for epoch in (0, 1):
        loader.batches.set_epoch(epoch)
        images, labels = gathered(loader)
        assert images.shape == (25, 3, 32, 32) and images.dtype == torch.float32 and images.is_contiguous()
        assert sorted(labels.tolist()) == sorted(number % 10 for number in range(25))
        epochs.append(images)
    assert not any(torch.equal(one, other) for one in epochs[0] for other in epochs[1])


def test_the_last_batch_may_be_dropped(tmp_path):
    data = ready(write(tmp_path), drop_last=True)
    assert [len(labels) for _, labels in data.train_dataloader()] == [4] * 6
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 13


def test_the_seed_decides(tmp_path):
    write(tmp_path)

    def epoch(seed):
        seed_everything(seed, verbose=False)
        return gathered(ready(tmp_path).train_dataloader())

    assert_close(epoch(0), epoch(0), rtol=0, atol=0)
    assert not torch.equal(epoch(0)[0], epoch(1)[0])


def test_testing_reads_no_training_images(tmp_path):
    (write(tmp_path) / "train-00000-of-00001.parquet").unlink()
    assert len(gathered(ready(tmp_path, stage="test").test_dataloader())[1]) == 13
    with pytest.raises(FileNotFoundError, match=r"expected files .*train-\*\.parquet, .* holds .*test-00000-of-00001"):
        ready(tmp_path)


def test_the_hub_is_the_default(monkeypatch):
    asked = []

    def load(name, *, split, streaming):
        asked.append((name, split, streaming))
        return rows(split)

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = Cifar10()
    data.prepare_data()
    data.setup("fit")
    assert len(gathered(data.train_dataloader())[1]) == 25 and len(gathered(data.val_dataloader())[1]) == 13
    assert asked == [("uoft-cs/cifar10", split, False) for split in ("train", "train", "test")]


def test_a_hub_that_cannot_be_read_is_explained(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=r"uoft-cs/cifar10 could not be read .*: no route\. Without a connection"):
        Cifar10().prepare_data()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image": "picture"}, ValueError, "must have the columns 'img' or 'image' and 'label', got"),
        ({"labels": [-1] * 25}, ValueError, "labels of .* must be between 0 and 9, .*, got -1"),
        ({"names": NAMES[:9], "labels": [0] * 25}, ValueError, "must have 10 classes, got 9: class 0, class 1"),
        ({"contents": [encoded(Image.new("RGB", (32, 31)))] * 25}, ValueError, "image 0 of .* 32x32 pixels, got 32x31"),
        ({"contents": [truncated()] * 25}, ValueError, "image 0 of .* must have 32x32 pixels, got 160x120"),
        ({"contents": [b"nothing"] * 25}, UnreadableImage, "image 0 of .*train-00000-of-00001.parquet cannot be read"),
        ({"contents": [], "labels": []}, ValueError, "must be a Parquet file that holds images: "),
    ],
    ids=["column", "labels", "classes", "size", "large", "corrupt", "empty"],
)
def test_what_is_not_cifar10_is_refused(tmp_path, options, error, message):
    rows("train", **options).to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    with pytest.raises(error, match=message):
        ready(tmp_path)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_images_that_are_kept_on_a_device_are_the_same(tmp_path, device):
    write(tmp_path)
    plain, kept = ready(tmp_path), ready(tmp_path, device=device)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for loader in (getattr(plain, name)(), getattr(kept, name)()):
            loader.batches.set_epoch(3)
        expected, found = (gathered(getattr(data, name)()) for data in (plain, kept))
        for one, other in zip(found, expected, strict=True):
            assert one.device.type == device
            assert_close(one.cpu(), other, rtol=0, atol=0 if device == "cpu" else 1e-6)  # division rounds otherwise


def test_a_cache_is_decoded_once_and_made_anew_for_other_files(tmp_path, monkeypatch):
    source, cache = write(tmp_path / "source"), tmp_path / "cache"
    expected = gathered(ready(source).val_dataloader())
    assert_close(gathered(ready(source, cache=str(cache)).val_dataloader()), expected, rtol=0, atol=0)
    with monkeypatch.context() as patch:
        patch.setattr(cifar10, "decode", None)
        assert_close(gathered(ready(source, cache=str(cache)).val_dataloader()), expected, rtol=0, atol=0)
    assert sorted(path.name for path in cache.iterdir()) == ["test.lock", "test.pt", "train.lock", "train.pt"]
    rows("test", labels=[9] * 13).to_parquet(str(source / "test-00000-of-00001.parquet"))
    assert gathered(ready(source, cache=str(cache)).val_dataloader())[1].tolist() == [9] * 13


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a folder with CIFAR-10, got .*nowhere', which is none"):
        ready(tmp_path / "nowhere")
