"""Local Parquet files are read without `datasets` as with it."""

import sys

import pytest
import torch
from PIL import Image

from recipes.data.cifar10 import Cifar10
from recipes.data.image_table import ImageTable, read_parquet
from recipes.data.imagenet import ImageNet
from recipes.data.parquet_rows import ParquetRows
from recipes.data.text import PennTreebank
from tests.recipes.pictures import collect, encoded, noise, table, write_parquet

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("own_datasets", "no_seed")


@pytest.fixture
def without_datasets(monkeypatch):
    """From its call on, the package cannot be imported."""
    return lambda: monkeypatch.setitem(sys.modules, "datasets", None)


def files(root, part="train"):
    return sorted(root.glob(f"{part}-*.parquet"))


def test_a_table_is_the_same(tmp_path, without_datasets):
    root = write_parquet(tmp_path)
    expected = ImageTable(read_parquet(files(root)), "files")
    rows = [expected.read(key) for key in range(len(expected))]
    without_datasets()
    images = ImageTable(read_parquet(files(root)), "files")
    assert isinstance(images._table, ParquetRows)
    assert [images.read(key) for key in range(len(images))] == rows
    assert list(images.names) == list(expected.names)


def test_cifar10_is_the_same(tmp_path, without_datasets):
    for part in ("train", "test"):
        contents = [encoded(noise(32, 32, number)) for number in range(6)]
        rows = table(contents, range(6), image="img", names=[f"class {number}" for number in range(10)])
        rows.to_parquet(str(tmp_path / f"{part}-00000-of-00001.parquet"))

    def batches():
        data = Cifar10(str(tmp_path), batch_size=4)
        data.setup("fit")
        return list(data.train_dataloader()) + list(data.val_dataloader())

    expected = batches()
    without_datasets()
    for (images, labels), (others, other_labels) in zip(batches(), expected, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: table([encoded(Image.new("RGB", (2, 2)))], [0], image="picture").to_parquet(path), "columns 'im"),
        (lambda path: datasets.Dataset.from_dict({"image": ["a"], "label": [0]}).to_parquet(path), "be a ClassLabel"),
        (lambda path: table([], []).to_parquet(path), "must hold images, it is empty"),
        (lambda path: table([b""], [-1]).to_parquet(path), "labels of files must be between 0 and 2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, without_datasets, write, message):
    write(str(tmp_path / "train-0.parquet"))
    without_datasets()
    with pytest.raises(ValueError, match=message):
        ImageTable(read_parquet(files(tmp_path)), "files")


def test_what_is_no_parquet_is_named(tmp_path, without_datasets):
    (tmp_path / "train-0.parquet").write_text("nothing")
    without_datasets()
    with pytest.raises(ValueError, match=r"train-0\.parquet must be a Parquet file that holds images"):
        read_parquet(files(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="datasets"):
        read_parquet(files(tmp_path), streaming=True)


def test_photographs_and_text_are_read(tmp_path, without_datasets, corpus):
    root = write_parquet(tmp_path / "images")
    without_datasets()
    data = ImageNet(str(root), batch_size=4, eval_batch_size=3, workers=0, crop_size=6, resize_size=8)
    data.setup("fit")
    assert collect(data.val_dataloader()) == (list(range(5)), [number % 3 for number in range(5)])
    text = PennTreebank(str(corpus), batch_size=4, steps=5, eval_batch_size=3)
    text.setup("fit")
    assert text.vocabulary_size == 23
