import gc
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything
from PIL import Image
from torch.testing import assert_close

from recipes.data.cifar10 import Cifar10
from recipes.data.digits import Digits
from recipes.data.encoded import UnreadableImage
from recipes.data.imagenet import ImageNet
from tests.recipes.pictures import (
    NAMES,
    collect,
    encoded,
    noise,
    numbered,
    table,
    truncated,
    write_folders,
    write_parquet,
)

datasets = pytest.importorskip("datasets")

SMALL = {"batch_size": 4, "eval_batch_size": 3, "workers": 0, "crop_size": 6, "resize_size": 8, "shuffle_buffer": 4}
EXPECTED = (list(range(7)), [number % 3 for number in range(7)])
VALIDATION = (list(range(5)), [number % 3 for number in range(5)])


pytestmark = pytest.mark.usefixtures("own_datasets", "no_seed")


def ready(path, stage="fit", **options):
    data = ImageNet(str(path), **SMALL | options)
    data.prepare_data()
    data.setup(stage)
    return data


def in_order(collected):
    pairs = sorted(zip(*collected, strict=True))
    return [number for number, _ in pairs], [label for _, label in pairs]


def parquet_in_data(root):
    return write_parquet(root / "data").parent


def folders_in_order(root):
    """Classes in turn make the order of folders another one."""
    return sorted(range(5), key=lambda number: (number % 3, number))


FORMS = {
    "folders": (write_folders, {}),
    "folders, cached": (write_folders, {"cache": True}),
    "parquet": (write_parquet, {}),
    "parquet, streamed": (write_parquet, {"streaming": True}),
    "parquet, cached": (parquet_in_data, {"cache": True}),
    "parquet, streamed into a cache": (parquet_in_data, {"streaming": True, "cache": True}),
}


@pytest.fixture(params=FORMS)
def form(request, tmp_path):
    write, options = FORMS[request.param]
    cached = {"cache": str(tmp_path / "cached"), "cache_size": 8} if options.get("cache") else {}
    return write(tmp_path / "images"), options | cached


@pytest.mark.parametrize("workers", [0, 2])
def test_every_form_gives_every_image_once_with_its_label(form, workers):
    path, options = form
    data = ready(path, workers=workers, **options)
    assert data.classes == 3
    train = collect(data.train_dataloader())
    assert in_order(train) == EXPECTED and train != EXPECTED
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert in_order(collect(loader)) == VALIDATION
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 6, 6) and images.dtype == torch.float32 and images.is_contiguous()
    assert labels.shape == (4,) and labels.dtype == torch.int64


def test_workers_change_nothing(form):
    path, options = form
    alone, several = (list(ready(path, workers=workers, **options).train_dataloader()) for workers in (0, 2))
    for one, other in zip(alone, several, strict=True):
        assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"cache": "cached"}], ids=["table", "stream", "cache"])
def test_each_image_is_augmented_in_its_own_way(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "validation"):
        table([encoded(noise(40, 32))] * 8, [0] * 8).to_parquet(str(tmp_path / f"{part}-0.parquet"))
    data = ready(tmp_path, cache_size=32, **options)
    trained, evaluated = (
        torch.cat([images for images, _ in loader]) for loader in (data.train_dataloader(), data.val_dataloader())
    )
    assert len(trained.unique(dim=0)) == 8 and len(evaluated.unique(dim=0)) == 1


def test_what_workers_need_can_be_sent_to_them(form):
    """As on platforms where processes are not forked."""
    path, options = form
    data = ready(path, **options)
    keys = list(data.order("validation", 0))
    sent = pickle.loads(pickle.dumps(data.fetch("validation")))
    assert_close(sent(0, keys), data.fetch("validation")(0, keys), rtol=0, atol=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_seed_and_epoch_decide_order_and_augmentation(tmp_path, streaming):
    contents = [encoded(noise(20, 16, number)) for number in range(8)]
    table(contents, [0] * 8).to_parquet(str(tmp_path / "train-0.parquet"))
    table(contents, [0] * 8).to_parquet(str(tmp_path / "validation-0.parquet"))

    def epoch(seed, number):
        seed_everything(seed, verbose=False)
        loader = ready(tmp_path, streaming=streaming).train_dataloader()
        loader.batches.set_epoch(number)
        torch.rand(1)  # what others draw does not matter
        return torch.cat([images for images, _ in loader])

    assert_close(epoch(0, 1), epoch(0, 1), rtol=0, atol=0)
    assert not torch.equal(epoch(0, 0), epoch(0, 1)) and not torch.equal(epoch(0, 1), epoch(1, 1))
    # not only the order: no image of an epoch is found in the other one
    assert not any(torch.equal(one, other) for one in epoch(0, 0) for other in epoch(0, 1))


def test_evaluation_equals_pillow_and_numpy_exactly_with_a_cache_too(tmp_path):
    sizes = [(50, 40), (33, 71), (32, 32), (300, 100), (20, 24)]
    for number, size in enumerate(sizes):
        for part in ("train", "val"):
            folder = tmp_path / "images" / part / "ant"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(encoded(noise(*size, number), "JPEG"))
    expected = []
    for number, (width, height) in enumerate(sizes):
        with Image.open(tmp_path / "images" / "val" / "ant" / f"{number}.jpg") as image:
            resized = image.resize(
                (32 * width // min(width, height), 32 * height // min(width, height)), Image.BILINEAR
            )
        left, upper = (round((side - 24) / 2) for side in resized.size)
        pixels = np.asarray(resized.crop((left, upper, left + 24, upper + 24)), dtype=np.float32) / np.float32(255)
        expected.append((pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]))
    expected = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2)
    options = {"crop_size": 24, "resize_size": 32, "eval_batch_size": 5}
    for cached in ({}, {"cache": str(tmp_path / "cached"), "cache_size": 32}):
        ((images, _),) = ready(tmp_path / "images", **options, **cached).val_dataloader()
        assert_close(images, expected, rtol=0, atol=0)


def test_dropping_leaves_out_what_does_not_fill_a_batch_of_training(tmp_path):
    data = ready(write_parquet(tmp_path), drop_last=True)
    assert [len(labels) for _, labels in data.train_dataloader()] == [4] and len(data.train_dataloader()) == 1
    assert [len(labels) for _, labels in data.val_dataloader()] == [3, 2]


def broken(root, form):
    """Seven training images, of which numbers 1, 2 and 5 cannot be read."""
    contents = [encoded(numbered(number)) for number in range(7)]
    contents[1], contents[2], contents[5] = truncated(), b"", b"no image"
    if form == "folders":
        write_folders(root)
        for number in (1, 2, 5):
            (root / "train" / NAMES[number % 3] / f"{number:03}.png").write_bytes(contents[number])
        return root
    write_parquet(root, files=1)
    (file,) = root.glob("train-*")
    table(contents, EXPECTED[1]).to_parquet(str(file))
    return root


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("form", "options"),
    [("folders", {}), ("parquet", {}), ("parquet", {"streaming": True}), ("parquet", {"cache": "cached"})],
    ids=["folders", "parquet", "stream", "cache"],
)
def test_images_that_cannot_be_read_are_left_out_and_counted_once_an_epoch(
    tmp_path, monkeypatch, form, options, workers
):
    monkeypatch.chdir(tmp_path)
    data = ready(broken(tmp_path / form, form), corrupt="skip", workers=workers, batch_size=7, **options)
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.batches.set_epoch(epoch)
        with pytest.warns(
            UserWarning, match=f"^3 images of epoch {epoch} could not be read and were left out$"
        ) as warned:
            collected = collect(loader)
        assert sum("could not be read" in str(warning.message) for warning in warned) == 1
        assert in_order(collected) == ([0, 3, 4, 6], [0, 0, 1, 0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("form", "name"), [("folders", r"ant|bee|cat"), ("parquet", r"image \d of .*train-")])
def test_an_image_that_cannot_be_read_ends_the_run_and_is_named(tmp_path, monkeypatch, form, name, workers):
    # seconds that torch waits for each worker after an error
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1, raising=False)
    data = ready(broken(tmp_path, form), workers=workers)
    with pytest.raises(UnreadableImage, match=rf"({name}).* cannot be read: .*`--data\.corrupt skip`"):
        list(data.train_dataloader())
    gc.collect()  # of the workers, before those seconds are restored


def test_a_batch_without_any_image_is_an_error(tmp_path):
    root = write_parquet(tmp_path)
    for file in root.glob("train-*"):
        table([truncated(number) for number in range(4)], [0] * 4).to_parquet(str(file))
    data = ready(root, corrupt="skip")
    with pytest.raises(UnreadableImage, match="none of the 4 images of a batch can be read; the last: image"):
        list(data.train_dataloader())


def test_a_cache_follows_the_images_and_its_size(tmp_path):
    options = {"cache": str(tmp_path / "cached"), "cache_size": 8}
    root = write_parquet(tmp_path / "images")
    ready(root, **options)
    made = (tmp_path / "cached" / "train.pixels").stat()
    ready(root, **options)
    assert (tmp_path / "cached" / "train.pixels").stat().st_mtime_ns == made.st_mtime_ns
    write_parquet(root, first=20)
    assert sorted(collect(ready(root, **options).train_dataloader())[0]) == list(range(20, 27))
    ready(root, **options | {"cache_size": 9})
    assert (tmp_path / "cached" / "train.pixels").stat().st_size > made.st_size
    folders = write_folders(tmp_path / "folders")
    assert sorted(collect(ready(folders, **options).train_dataloader())[0]) == list(range(7))
    (folders / "train" / "ant" / "zzz.png").write_bytes(encoded(numbered(99)))
    assert max(collect(ready(folders, **options).train_dataloader())[0]) == 99


def test_the_hub_is_the_default(monkeypatch):
    asked = []

    def load(name, *, split, streaming):
        asked.append((name, split, streaming))
        count = {"train": 7, "validation": 5}[split]
        rows = table([encoded(numbered(number)) for number in range(count)], [number % 3 for number in range(count)])
        if not streaming:
            return rows
        stream = rows.to_iterable_dataset()
        stream.info.splits = datasets.SplitDict({split: datasets.splits.SplitInfo(split, num_examples=count)})
        return stream

    monkeypatch.setattr(datasets, "load_dataset", load)
    for streaming in (False, True):
        data = ImageNet(streaming=streaming, **SMALL)
        data.setup("fit")
        assert in_order(collect(data.train_dataloader())) == EXPECTED
        assert in_order(collect(data.test_dataloader())) == VALIDATION  # the hub's own has no labels
    name = "ILSVRC/imagenet-1k"
    assert asked == [(name, split, streaming) for streaming in (False, True) for split in ("train", "validation")]
    asked.clear()
    ImageNet(**SMALL).prepare_data()
    assert asked == [(name, "train", False), (name, "validation", False)]


def test_a_hub_that_cannot_be_read_is_explained(monkeypatch):
    def gated(*args, **kwargs):
        raise OSError("401")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(ConnectionError, match=r"ILSVRC/imagenet-1k could not be read .*: 401\. It is gated: accept"):
        ImageNet().prepare_data()


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be a folder of images, got .*nowhere', which is none"):
        ready(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"folder with `train-\*\.parquet` .*; '.*' holds nothing"):
        ready(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"or with folders `train` or `val` .* holds photos"):
        ready(tmp_path)


def test_training_images_alone_are_enough_if_nothing_is_validated(tmp_path):
    root = write_parquet(tmp_path)
    for file in root.glob("validation-*"):
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"validation images are not in .*, which holds train images: `--trainer"
    ):
        ready(root)
    data = ImageNet(str(root), **SMALL)
    data.trainer = SimpleNamespace(limit_val_batches=0, overfit_batches=0, current_epoch=0, global_rank=0, world_size=1)
    data.setup("fit")
    assert in_order(collect(data.train_dataloader())) == EXPECTED


def test_validation_images_alone_are_enough_to_evaluate(tmp_path):
    root = write_folders(tmp_path)
    for file in [*root.glob("train/*/*")]:
        file.unlink()
    for folder in [*root.glob("train/*"), root / "train"]:
        folder.rmdir()
    data = ready(root, stage="test")
    assert data.classes == 3 and in_order(collect(data.test_dataloader())) == VALIDATION
    with pytest.raises(FileNotFoundError, match=r"the train images are not in .*, which holds validation images$"):
        data.setup("fit")


def test_both_parts_must_have_the_same_classes(tmp_path):
    root = write_parquet(tmp_path)
    write_parquet(tmp_path / "other", names=["ant", "cat", "bee"])
    for file in root.glob("validation-*"):
        os.replace(tmp_path / "other" / file.name, file)
    with pytest.raises(ValueError, match=r"same classes in the same order, got 3 \(ant, bee, .* and 3 \(ant, cat, bee"):
        ready(root)


def test_folders_are_not_streamed(tmp_path):
    with pytest.raises(ValueError, match="`streaming` is for the hub and for Parquet files"):
        ready(write_folders(tmp_path), streaming=True)


@pytest.mark.parametrize(("overfit", "same"), [(0, False), (2, True)])
def test_batches_to_overfit_stay_the_same(tmp_path, overfit, same):
    data = ready(write_parquet(tmp_path))
    epochs = []
    for epoch in range(2):
        data.trainer = SimpleNamespace(overfit_batches=overfit, current_epoch=epoch, global_rank=0, world_size=1)
        epochs.append(collect(data.train_dataloader())[0])
    assert (epochs[0] == epochs[1]) == same


@pytest.mark.parametrize("kind", [ImageNet, Cifar10, Digits])
def test_every_argument_is_an_option_of_the_command_line(kind):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    own = ["--data.path=FOLDER", "--data.cache=CACHED", "--data.corrupt=skip"]
    given = ["--data.batch_size=8", *(own if kind is ImageNet else [])]
    # its new name is not there in older versions
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    data = instantiate(parser.parse_args(given)).data
    assert type(data) is kind and data.batch_size == 8
    if kind is ImageNet:
        assert (data.path, str(data.cache), data.corrupt) == ("FOLDER", "CACHED", "skip")


def test_classes_are_not_known_before_setup():
    with pytest.raises(RuntimeError, match="known after `setup`"):
        ImageNet().classes  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "`eval_batch_size` must be at least 1, got 0"),
        ({"workers": -1}, "`workers` must be at least 0, got -1"),
        ({"crop_size": 0}, "`crop_size` must be at least 1, got 0"),
        ({"cache_size": 0}, "`cache_size` must be at least 1, got 0"),
        ({"shuffle_buffer": 0}, "`shuffle_buffer` must be at least 1, got 0"),
        ({"resize_size": 223}, "`resize_size` must be at least `crop_size`, 224, got 223"),
        ({"smallest_crop": 0.0}, r"`smallest_crop` must be more than 0 and at most 1, got 0\.0"),
        ({"corrupt": "ignore"}, "`corrupt` must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageNet(**options)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("cached", [False, True])
def test_images_that_are_kept_on_a_device_are_evaluated_as_decoded_ones(tmp_path, device, cached):
    root = write_parquet(tmp_path / "images")
    options = {"cache": str(tmp_path / "cache"), "cache_size": 8} if cached else {}
    expected = list(ready(root).val_dataloader())
    data = ready(root, device=device, **options)
    for (images, labels), (others, other_labels) in zip(data.val_dataloader(), expected, strict=True):
        assert images.device.type == labels.device.type == device
        assert_close(images.cpu(), others, rtol=0, atol=0 if device == "cpu" else 1e-6)  # division rounds otherwise
        assert torch.equal(labels.cpu(), other_labels)
    numbers, labels = collect([(images.cpu(), labels.cpu()) for images, labels in data.train_dataloader()])
    assert in_order((numbers, labels)) == EXPECTED
    first = next(iter(data.train_dataloader()))[0]
    assert first.shape == (4, 3, 6, 6) and torch.equal(next(iter(data.train_dataloader()))[0], first)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"streaming": True}, "`streaming` keeps no images"), ({"corrupt": "skip"}, "`corrupt` must be 'raise' where")],
)
def test_what_cannot_be_kept_on_a_device_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageNet(device="cpu", **options)


def test_an_image_that_cannot_be_kept_is_named(tmp_path):
    (write_folders(tmp_path) / "train" / "bee" / "001.png").write_bytes(truncated())
    with pytest.raises(UnreadableImage, match=r"001\.png cannot be read"):
        ready(tmp_path, device="cpu").train_dataloader()
